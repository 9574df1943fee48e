//! Ctrl-C: stops the current answer, or the program when there is none.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bayan_generate::Control;

/// Exit code of an interrupted program, as shells use it.
const INTERRUPTED: i32 = 130;

struct State {
    control: Arc<Control>,
    interrupted: bool,
}

static ANSWER: Mutex<Option<State>> = Mutex::new(None);

fn with_answer<T>(look: impl FnOnce(&mut Option<State>) -> T) -> T {
    look(&mut ANSWER.lock().unwrap_or_else(|e| e.into_inner()))
}

/// Installs the Ctrl-C handler for the rest of the program.
pub fn set_up() {
    // The only possible failure is a second handler, and this is called once.
    let _ = ctrlc::set_handler(|| {
        let stops_an_answer = with_answer(|answer| match answer {
            Some(state) if !state.interrupted => {
                state.interrupted = true;
                state.control.stop();
                true
            }
            // A second Ctrl-C before the first had an effect ends the program.
            _ => false,
        });
        if !stops_an_answer {
            std::process::exit(INTERRUPTED);
        }
    });
}

/// Makes Ctrl-C remove the partial output of a quantization (the hidden directory beside `out`) before the program
/// ends.
pub fn remove_partial(out: &Path) {
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf();
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}.partial-{}-", std::process::id());
    let _ = ctrlc::set_handler(move || {
        for entry in std::fs::read_dir(&parent).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        std::process::exit(INTERRUPTED);
    });
}

/// A flag that the first Ctrl-C sets; the second ends the program at once.
pub fn flag() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let pressed = flag.clone();
    let _ = ctrlc::set_handler(move || {
        if pressed.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED);
        }
        crate::support::output::note(
            "finishing this step and saving a checkpoint; press Ctrl-C again to stop at once without saving",
        );
    });
    flag
}

/// While this value lives, Ctrl-C stops the generation of its handle instead of the program.
pub struct Answering(());

impl Answering {
    /// Starts.
    pub fn begin(control: Arc<Control>) -> Answering {
        with_answer(|answer| *answer = Some(State { control, interrupted: false }));
        Answering(())
    }

    /// Whether Ctrl-C was pressed. Callers check this at every piece of text, because the handle ignores a stop before
    /// the generation began.
    pub fn interrupted(&self) -> bool {
        with_answer(|answer| answer.as_ref().is_some_and(|state| state.interrupted))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        with_answer(|answer| *answer = None);
    }
}
