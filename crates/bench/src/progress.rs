use std::io::{IsTerminal, stderr};

/// What is being measured, on standard error: one line that is written over on a terminal, plain lines elsewhere.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    step: usize,
    steps: usize,
}

impl Progress {
    pub fn new(steps: usize) -> Self {
        Self { terminal: stderr().is_terminal(), step: 0, steps }
    }

    pub fn say(&self, what: &str) {
        if self.terminal { eprint!("\r\x1b[2K{what} …") } else { eprintln!("{what}") }
    }

    /// Begins the next of the steps.
    pub fn step(&mut self, what: &str) {
        self.step += 1;
        self.say(&format!("[{}/{}] {what}", self.step, self.steps));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal {
            eprint!("\r\x1b[2K");
        }
    }
}
