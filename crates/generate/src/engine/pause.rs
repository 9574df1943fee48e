//! Pauses on the CPU, in which a program with one thread does its other work.

use std::rc::Rc;

use bayan_weights::LocalFuture;

use super::Engine;

/// Starts a pause; the engine goes on when the future is done.
pub type Pause = Rc<dyn Fn() -> LocalFuture<'static, ()>>;

impl Engine {
    /// Sets what is awaited between two steps on the CPU. A GPU computes beside the program, which has its pauses
    /// while it waits for results; on the CPU a browser would read no message, such as one that stops the answer,
    /// before the answer ends.
    pub fn set_pause(&mut self, pause: Pause) {
        self.pause = Some(pause);
    }

    /// Pauses, on the CPU only.
    pub(super) async fn pause(&self) {
        if let (Some(pause), true) = (&self.pause, self.devices.cpu.is_some()) {
            pause().await;
        }
    }
}
