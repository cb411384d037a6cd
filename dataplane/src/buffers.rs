use crate::io::pages::Pages;

/// Equal buffers in one allocation, made once.
pub(crate) struct Buffers {
    bytes: Pages,
    size: usize,
}

impl Buffers {
    pub(crate) fn new(count: usize, size: usize) -> Self {
        Self { bytes: Pages::new(count * size), size }
    }

    pub(crate) fn get(&self, place: usize) -> &[u8] {
        self.bytes.get(place * self.size..(place + 1) * self.size).unwrap_or_default()
    }

    pub(crate) fn get_mut(&mut self, place: usize) -> &mut [u8] {
        self.bytes.get_mut(place * self.size..(place + 1) * self.size).unwrap_or_default()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.bytes.chunks_exact_mut(self.size)
    }

    /// As [`Pages::give_back`].
    pub(crate) fn give_back(&mut self) {
        self.bytes.give_back();
    }

    /// Whether `part` lies inside one of the buffers: nothing was copied out of them.
    pub(crate) fn hold(&self, part: &[u8]) -> bool {
        let all = self.bytes.as_ptr_range();
        let part = part.as_ptr_range();
        all.start <= part.start && part.end <= all.end
    }
}
