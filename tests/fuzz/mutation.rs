//! Inputs from a seed: pieces of the corpus with bits turned, bytes changed, pieces cut, repeated, moved and exchanged, and
//! words of a dictionary. The same seed gives the same inputs.

use std::path::Path;

const INPUT_BYTES_MAX: usize = 16 << 10;
const CHANGES_MAX: usize = 8;
/// Numbers at the edges of what parsers take.
const EDGES: [u64; 12] = [0, 1, 4, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, u64::MAX];

/// The words of a dictionary in libFuzzer's form; none where there is no file.
pub fn words(path: &Path) -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter(|line| !line.starts_with('#')).filter_map(word).collect()
}

/// What stands between the outermost quotes, with `\\`, `\"` and `\xNN`.
fn word(line: &str) -> Option<Vec<u8>> {
    let text = line.split_once('"')?.1.rsplit_once('"')?.0.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < text.len() {
        let (byte, taken) = match &text[at..] {
            [b'\\', b'x', digits @ ..] => {
                let digits = std::str::from_utf8(digits.get(..2)?).ok()?;
                (u8::from_str_radix(digits, 16).ok()?, 4)
            }
            [b'\\', byte, ..] => (*byte, 2),
            rest => (*rest.first()?, 1),
        };
        out.push(byte);
        at += taken;
    }
    Some(out)
}

/// Makes inputs.
pub struct Mutation<'c> {
    state: u64,
    corpus: &'c [Vec<u8>],
    words: &'c [Vec<u8>],
    input: Vec<u8>,
}

// === impl Mutation ===

impl<'c> Mutation<'c> {
    pub fn new(seed: u64, corpus: &'c [Vec<u8>], words: &'c [Vec<u8>]) -> Self {
        Self { state: seed | 1, corpus, words, input: Vec::new() }
    }

    /// The next input.
    pub fn next(&mut self) -> &[u8] {
        // Mostly of the corpus, else of what was last.
        if self.below(4) > 0 || self.input.is_empty() {
            let at = self.below(self.corpus.len());
            self.input.clone_from(&self.corpus[at]);
        }
        for _ in 0..=self.below(CHANGES_MAX) {
            self.change();
        }
        self.input.truncate(INPUT_BYTES_MAX);
        &self.input
    }

    /// xorshift64*.
    fn random(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, most: usize) -> usize {
        if most == 0 { 0 } else { (self.random() >> 11) as usize % most }
    }

    /// A piece of a text of this length, mostly a short one.
    fn piece(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let most = if self.below(3) == 0 { length - start } else { (length - start).min(16) };
        start..start + self.below(most + 1)
    }

    fn change(&mut self) {
        let (place, piece) = (self.below(self.input.len() + 1), self.piece(self.input.len()));
        match self.below(10) {
            0 if place < self.input.len() => self.input[place] ^= 1 << self.below(8),
            1 if place < self.input.len() => self.input[place] = self.random() as u8,
            2 => self.input.truncate(place),
            3 => drop(self.input.drain(piece)),
            4 => {
                let times = 1 << self.below(6);
                let repeated = self.input[piece].repeat(times);
                self.insert(place, &repeated);
            }
            5 => {
                let other = &self.corpus[self.below(self.corpus.len())];
                let part = self.piece(other.len());
                self.insert(place, &other[part]);
            }
            6 => {
                let other = &self.corpus[self.below(self.corpus.len())];
                let part = self.piece(other.len());
                self.input.splice(piece, other[part].iter().copied());
            }
            7 => {
                let number = EDGES[self.below(EDGES.len())];
                let bytes = match self.below(5) {
                    0 => vec![number as u8],
                    1 => (number as u16).to_be_bytes().to_vec(),
                    2 => (number as u16).to_le_bytes().to_vec(),
                    3 => (number as u32).to_be_bytes().to_vec(),
                    _ => (number as u32).to_le_bytes().to_vec(),
                };
                let end = (place + bytes.len()).min(self.input.len());
                self.input.splice(place..end, bytes);
            }
            8 | 9 if !self.words.is_empty() => {
                let word = self.words[self.below(self.words.len())].clone();
                self.insert(place, &word);
            }
            _ => self.insert(place, &[0x20]),
        }
    }

    fn insert(&mut self, place: usize, bytes: &[u8]) {
        let room = INPUT_BYTES_MAX.saturating_sub(self.input.len());
        self.input.splice(place..place, bytes[..bytes.len().min(room)].iter().copied());
    }
}
