//! Boxes of ISO/IEC 14496-12 §4.2, and big-endian fields in them.

/// A box.
#[derive(Clone, Copy)]
pub(super) struct Mp4Box<'a> {
    pub(super) name: [u8; 4],
    /// Position in the bytes that were searched.
    pub(super) offset: usize,
    /// What follows its header; cut off if it exceeds the bytes.
    pub(super) body: &'a [u8],
    /// Length of the header.
    pub(super) header_length: usize,
    /// It exceeds the bytes.
    pub(super) is_truncated: bool,
}

/// Boxes that stand next to each other.
pub(super) fn iter_boxes(bytes: &[u8]) -> impl Iterator<Item = Mp4Box<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(at..)?;
        let (name, length, header) = parse_box_header(rest)?;
        let found = Mp4Box {
            name,
            offset: at,
            body: rest.get(header..length.min(rest.len()))?,
            header_length: header,
            is_truncated: length > rest.len(),
        };
        at = at.checked_add(length)?;
        Some(found)
    })
}

/// Bodies of the boxes with this name.
pub(super) fn box_bodies<'a>(bytes: &'a [u8], name: &'static [u8; 4]) -> impl Iterator<Item = &'a [u8]> {
    iter_boxes(bytes)
        .filter(|found| found.name == *name)
        .map(|found| found.body)
}

/// Body of the box at the end of this path.
pub(super) fn box_body_at_path<'a>(bytes: &'a [u8], path: &[&'static [u8; 4]]) -> Option<&'a [u8]> {
    path.iter()
        .try_fold(bytes, |bytes, name| box_bodies(bytes, name).next())
}

/// Name, length, and length of the header.
fn parse_box_header(bytes: &[u8]) -> Option<([u8; 4], usize, usize)> {
    let (size, rest) = bytes.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_first_chunk::<4>()?;
    let (length, header) = match u32::from_be_bytes(*size) {
        0 => (bytes.len(), 8),
        1 => (usize::try_from(u64::from_be_bytes(*rest.first_chunk::<8>()?)).ok()?, 16),
        size => (usize::try_from(size).ok()?, 8),
    };
    (length >= header).then_some((*name, length, header))
}

/// Reads fields one after the other.
pub(super) struct FieldReader<'a>(pub(super) &'a [u8]);

impl<'a> FieldReader<'a> {
    pub(super) fn take_bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn read_u8(&mut self) -> Option<u8> {
        self.take_bytes(1)?.first().copied()
    }

    pub(super) fn read_u16(&mut self) -> Option<u16> {
        self.take_bytes(2)?
            .first_chunk()
            .map(|bytes| u16::from_be_bytes(*bytes))
    }

    pub(super) fn read_u32(&mut self) -> Option<u32> {
        self.take_bytes(4)?
            .first_chunk()
            .map(|bytes| u32::from_be_bytes(*bytes))
    }

    pub(super) fn read_u64(&mut self) -> Option<u64> {
        self.take_bytes(8)?
            .first_chunk()
            .map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// A field of 32 bits, or 64 bits in version 1 of its box.
    pub(super) fn read_u32_or_u64(&mut self, version: u8) -> Option<u64> {
        if version == 1 {
            self.read_u64()
        } else {
            self.read_u32().map(u64::from)
        }
    }
}
