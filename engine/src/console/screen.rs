//! A terminal that is drawn anew again and again, and given back as it was.

use std::io::{IsTerminal, Read, stdin, stdout};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

use super::Failure;

/// Another screen, no cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the top; what is left of a line, and of the screen, is cleared.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_REST: &str = "\x1b[J";

/// Where frames are shown: a terminal, or a stream to which they are printed one after the other.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: bool,
    /// The keyboard's settings before.
    before: Option<Termios>,
}

impl Screen {
    /// Takes the terminal, if there is one.
    pub(super) fn open() -> Self {
        let terminal = stdout().is_terminal();
        let before = Some(stdin()).filter(|stdin| terminal && stdin.is_terminal());
        let before = before.and_then(|stdin| tcgetattr(stdin).ok());
        if let Some(before) = &before {
            let mut single = before.clone();
            // Keys come one by one; Ctrl-C stays a signal.
            single.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            // Without it `q` needs Enter.
            let _ = tcsetattr(stdin(), OptionalActions::Now, &single);
        }
        if terminal {
            write(ENTER);
        }
        Self { terminal, before }
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Lines and columns, where there is a terminal.
    pub(super) fn size(&self) -> Option<(usize, usize)> {
        let size = tcgetwinsize(stdout()).ok().filter(|_| self.terminal)?;
        (size.ws_row > 0 && size.ws_col > 0).then(|| (size.ws_row.into(), size.ws_col.into()))
    }

    /// Shows a frame; false if nobody reads any more.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn show(&self, frame: &str) -> Result<bool, Failure> {
        let text = if self.terminal {
            let lines = frame.lines().map(|line| format!("{line}{CLEAR_LINE}"));
            format!("{HOME}{}{CLEAR_REST}", lines.collect::<Vec<_>>().join("\r\n"))
        } else {
            format!("{frame}\n")
        };
        Ok(ringway_stdio::show(&text)?)
    }

    /// Keys as they are pressed; none if there is no keyboard.
    pub(super) fn keys(&self) -> mpsc::Receiver<u8> {
        let (sender, keys) = mpsc::channel(8);
        if self.before.is_some() {
            // It ends with the process, which waits for nobody's key.
            std::thread::spawn(move || read_keys(&sender));
        }
        keys
    }
}

fn read_keys(sender: &mpsc::Sender<u8>) {
    let mut key = [0];
    while let Ok(1) = stdin().read(&mut key) {
        if sender.blocking_send(key[0]).is_err() {
            return;
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.terminal {
            write(LEAVE);
        }
        if let Some(before) = &self.before {
            // There is nothing better to leave behind.
            let _ = tcsetattr(stdin(), OptionalActions::Now, before);
        }
    }
}

fn write(text: &str) {
    // A terminal that has gone needs no cursor.
    let _ = ringway_stdio::show(text);
}
