//! Verdicts, and the frame of every expression.

use crate::net::nft::buffer::Buffer;

pub(super) const REG_VERDICT: u32 = 0;

pub(super) const VERDICT_RETURN: i32 = -5;

pub(super) const VERDICT_GOTO: i32 = -4;

pub(super) fn expression(b: &mut Buffer, name: &str, body: impl FnOnce(&mut Buffer)) {
    b.nest(1, |b| {
        b.attr_str(1, name);
        b.nest(2, body);
    });
}

pub(super) fn verdict_data(b: &mut Buffer, code: i32, chain: Option<&str>) {
    b.nest(2, |b| {
        b.attr(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            b.attr_str(2, chain);
        }
    });
}

pub(super) fn verdict(b: &mut Buffer, code: i32, chain: Option<&str>) {
    expression(b, "immediate", |b| {
        b.attr_be32(1, REG_VERDICT);
        b.nest(2, |b| verdict_data(b, code, chain));
    });
}
