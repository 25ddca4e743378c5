//! The user's terminal while a command runs on it in a container.

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::wire::websocket::Size;

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

    /// Its size.
    pub(super) fn size() -> Option<Size> {
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
        Some(Size { width: size.ws_col, height: size.ws_row })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}
