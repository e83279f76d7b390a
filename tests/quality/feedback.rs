//! Writes transport-wide feedback like a browser does: each packet is reported once, from the first that was not yet.

/// Status of the packets from `base` on: ticks of 250 microseconds since the start of the receiver's clock, if received.
pub(crate) fn write(base: u16, statuses: &[Option<i64>], count: u8, body: &mut Vec<u8>) {
    body.clear();
    body.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2]);
    body.extend_from_slice(&base.to_be_bytes());
    body.extend_from_slice(&(statuses.len() as u16).to_be_bytes());
    let first = statuses.iter().flatten().next().copied().unwrap_or(0);
    let reference = first.div_euclid(256);
    body.extend_from_slice(&((reference as u32) << 8 | u32::from(count)).to_be_bytes());
    let mut before = reference * 256;
    let mut deltas = Vec::with_capacity(statuses.len() * 2);
    for statuses in statuses.chunks(7) {
        let mut chunk = 0xc000_u16;
        for (index, status) in statuses.iter().enumerate() {
            let Some(ticks) = status else { continue };
            let delta = ticks - before;
            before = *ticks;
            let symbol = match u8::try_from(delta) {
                Ok(small) => {
                    deltas.push(small);
                    1
                }
                Err(_) => {
                    let large = delta.clamp(i64::from(i16::MIN), i64::from(i16::MAX)) as i16;
                    deltas.extend_from_slice(&large.to_be_bytes());
                    2
                }
            };
            chunk |= symbol << (12 - 2 * index);
        }
        body.extend_from_slice(&chunk.to_be_bytes());
    }
    body.extend_from_slice(&deltas);
}
