//! A terminal that is drawn anew again and again, and given back as it was; or a stream, to which
//! the same is printed.

use std::io::{IsTerminal, stdout};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ringway_stdio::Trouble;
use tokio::sync::mpsc;

use super::refused;
use super::view::View;

/// Keys that wait.
const KEYS: usize = 8;

/// What somebody at the keyboard wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// To end it.
    Quit,
    /// The terminal has another size now.
    Draw,
}

/// Where views are shown: a terminal, or a stream to which they are printed one after the other.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: Option<DefaultTerminal>,
}

impl Screen {
    /// Takes the terminal, if there is one.
    ///
    /// # Errors
    /// When there is one that cannot be taken.
    pub(super) fn open() -> Result<Self, Trouble> {
        let taken = stdout().is_terminal().then(ratatui::try_init).transpose();
        Ok(Self { terminal: taken.map_err(refused("the terminal cannot be taken"))? })
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Shows a view; false if nobody reads any more.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn show(&mut self, view: &View) -> Result<bool, Trouble> {
        match &mut self.terminal {
            Some(terminal) => {
                terminal.draw(|frame| view.draw(frame)).map_err(ringway_cli::unprinted)?;
                Ok(true)
            }
            None => ringway_stdio::show(&(view.text() + "\n")).map_err(ringway_cli::unprinted),
        }
    }

    /// Keys as they are pressed; none if there is no terminal.
    pub(super) fn keys(&self) -> mpsc::Receiver<Key> {
        let (sender, keys) = mpsc::channel(KEYS);
        if self.is_terminal() {
            // The thread ends with the process, which does not wait for a key.
            std::thread::spawn(move || read_keys(&sender));
        }
        keys
    }
}

fn read_keys(sender: &mpsc::Sender<Key>) {
    while let Ok(event) = event::read() {
        if let Some(key) = meaning(&event)
            && sender.blocking_send(key).is_err()
        {
            return;
        }
    }
}

/// What an event of the terminal asks for. Ctrl-C is a key like others here.
fn meaning(event: &Event) -> Option<Key> {
    match event {
        Event::Resize(..) => Some(Key::Draw),
        Event::Key(key) if key.is_press() => match key.code {
            KeyCode::Char('q' | 'Q') | KeyCode::Esc => Some(Key::Quit),
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Quit),
            _ => None,
        },
        _ => None,
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.is_terminal() {
            // A terminal that has gone needs no giving back.
            let _ = ratatui::try_restore();
        }
    }
}

#[cfg(test)]
mod tests {
    use ratatui::crossterm::event::KeyEvent;

    use super::*;

    #[test]
    fn a_few_keys_mean_something() {
        let key = |code, modifiers| meaning(&Event::Key(KeyEvent::new(code, modifiers)));
        let none = KeyModifiers::NONE;
        assert_eq!(key(KeyCode::Char('q'), none), Some(Key::Quit));
        assert_eq!(key(KeyCode::Esc, none), Some(Key::Quit));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Key::Quit));
        assert_eq!(key(KeyCode::Char('c'), none), None);
        assert_eq!(meaning(&Event::Resize(80, 24)), Some(Key::Draw));
    }
}
