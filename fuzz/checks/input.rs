//! How the first bytes of an input say how the rest is run.

use std::fmt::Debug;

use tidegate::http::{FieldTable, Limits};

/// Runs `wire` whole, byte by byte, and cut at two places. All have to come to the same.
pub(super) fn in_any_split<T: Debug + PartialEq>(
    wire: &[u8],
    cuts: [u8; 4],
    run: impl Fn(&[&[u8]]) -> T,
) -> T {
    let whole = run(&[wire]);
    let bytes: Vec<&[u8]> = wire.chunks(1).collect();
    assert_eq!(run(&bytes), whole, "byte by byte, and whole");
    let [a, b, c, d] = cuts;
    let mut cuts = [[a, b], [c, d]].map(|cut| place(cut, wire.len()));
    cuts.sort_unstable();
    let pieces = [&wire[..cuts[0]], &wire[cuts[0]..cuts[1]], &wire[cuts[1]..]];
    assert_eq!(run(&pieces), whole, "cut at {cuts:?}, and whole");
    whole
}

/// An offset into so many bytes.
pub(super) fn place(choice: [u8; 2], len: usize) -> usize {
    usize::from(u16::from_be_bytes(choice)) % (len + 1)
}

/// Wide limits, and some so tight that they are reached.
pub(super) fn limits(choice: u8) -> Limits {
    match choice % 4 {
        0 => Limits { head_bytes: 4096, fields: 64, content_bytes: 4096 },
        1 => Limits { head_bytes: 256, fields: 8, content_bytes: 16 },
        2 => Limits { head_bytes: 64, fields: 2, content_bytes: 0 },
        _ => Limits { head_bytes: 1024, fields: FieldTable::LEN, content_bytes: 1 << 40 },
    }
}
