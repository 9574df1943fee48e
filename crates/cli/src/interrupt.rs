//! Ctrl-C: stops the answer under way, and the program when there is none.

use std::sync::atomic::{AtomicBool, Ordering};

static ANSWERING: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);

/// What a shell reports for a program that was interrupted.
const INTERRUPTED: i32 = 130;

/// Takes over Ctrl-C for the rest of the program.
pub fn set_up() {
    // The only failure is a second handler, and there is one call.
    let _ = ctrlc::set_handler(|| {
        // A second Ctrl-C before the first had an effect (a long prompt on a slow device) ends the program.
        if !ANSWERING.load(Ordering::SeqCst) || STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(INTERRUPTED);
        }
    });
}

/// While this lives, Ctrl-C asks the answer to stop.
pub struct Answering(());

impl Answering {
    /// From here on.
    pub fn begin() -> Answering {
        STOP.store(false, Ordering::SeqCst);
        ANSWERING.store(true, Ordering::SeqCst);
        Answering(())
    }

    /// Whether Ctrl-C was pressed.
    pub fn interrupted(&self) -> bool {
        STOP.load(Ordering::SeqCst)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        ANSWERING.store(false, Ordering::SeqCst);
        STOP.store(false, Ordering::SeqCst);
    }
}
