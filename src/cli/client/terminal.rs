//! The user's terminal while a command runs on it in a container.

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Passes every key on while it lives, then is as before.
pub(super) struct Terminal(Termios);

// === impl Terminal ===

impl Terminal {
    /// Standard input as a raw terminal; `None` if it is none.
    pub(super) fn raw() -> Option<Self> {
        let input = std::io::stdin();
        let before = tcgetattr(&input).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&input, SetArg::TCSADRAIN, &raw).ok()?;
        Some(Self(before))
    }

    /// Columns and rows.
    pub(super) fn size() -> Option<(u16, u16)> {
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
        Some((size.ws_col, size.ws_row))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}
