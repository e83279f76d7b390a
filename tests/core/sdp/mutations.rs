//! Mutated offers: real ones, damaged by a seeded generator. Every answer satisfies the invariants.

use millstream_core::sdp::Offer;
use millstream_core::sdp::negotiation_result::AudioVideoFormats;

use crate::sdp::invariants::{check_playback, check_publication};
use crate::sdp::{OPUS, Us, all_recorded, high_and_opus, play, publish, vp8_and_opus};

const SEED: u64 = 0x6d69_6c6c;
const PER_OFFER: usize = 2_000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len())]
    }
}

const WORDS: [&str; 24] = [
    "0",
    "1",
    "9",
    "15",
    "64",
    "96",
    "127",
    "128",
    "256",
    "65536",
    "4294967296",
    "-1",
    "",
    "*",
    "~0",
    "rtx/90000",
    "H264/90000",
    "sendrecv",
    "recvonly",
    "BUNDLE 1 0",
    "apt=96",
    "passive",
    "\u{e9}",
    "packetization-mode=2",
];

/// Damages a line or two; `donor` lends lines.
fn damage(offer: &str, donor: &str, random: &mut Random) -> Vec<u8> {
    let mut lines: Vec<String> = offer.split_inclusive('\n').map(str::to_owned).collect();
    let donors: Vec<&str> = donor.split_inclusive('\n').collect();
    for _ in 0..=random.below(3) {
        let at = random.below(lines.len());
        match random.below(10) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[at].clone()),
            2 => {
                let other = random.below(lines.len());
                lines.swap(at, other);
            }
            3 => lines.insert(at, random.pick(&donors).to_owned()),
            4 => lines[at] = random.pick(&donors).to_owned(),
            5 => lines[at] = lines[at].replace("\r\n", "\n"),
            6 => lines[at] = lines[at].replacen(char::is_numeric, random.pick(&WORDS), 1),
            _ => {
                let mut words: Vec<&str> = lines[at].split_inclusive([' ', ':', ';', '=', '/']).collect();
                let word = random.below(words.len());
                match random.below(3) {
                    0 => drop(words.remove(word)),
                    1 => words[word] = random.pick(&WORDS),
                    _ => words.insert(word, random.pick(&WORDS)),
                }
                let line: String = words.concat();
                lines[at] = line;
            }
        }
        if lines.is_empty() {
            break;
        }
    }
    let mut bytes = lines.concat().into_bytes();
    match random.below(12) {
        0 => bytes.truncate(random.below(bytes.len())),
        1 if !bytes.is_empty() => {
            let at = random.below(bytes.len());
            bytes[at] = random.next() as u8;
        }
        _ => {}
    }
    bytes
}

#[test]
fn damaged_offers_are_refused_or_answered_soundly() {
    println!("seed {SEED:#x}");
    let mut random = Random(SEED);
    let offers = all_recorded();
    let (mut answered, mut refused) = (0, 0);
    for (name, offer) in &offers {
        for round in 0..PER_OFFER {
            let donor = &offers[random.below(offers.len())].1;
            let bytes = damage(offer, donor, &mut random);
            let Ok(text) = std::str::from_utf8(&bytes) else {
                let error = Offer::parse(&bytes).expect_err("not UTF-8");
                assert!(matches!(error.code(), "not_text" | "offer_missing"), "{error}");
                refused += 1;
                continue;
            };
            let case = Case(name, round, text);
            let source = match random.below(3) {
                0 => high_and_opus(),
                1 => vp8_and_opus(),
                _ => AudioVideoFormats {
                    video: None,
                    audio: Some(OPUS),
                },
            };
            let results = [
                publish(text).map(|(plan, answer)| check_publication(text, &answer, &plan)),
                play(text, source).map(|(plan, answer)| check_playback(text, &answer, &plan)),
            ];
            for result in results {
                match result {
                    Ok(()) => answered += 1,
                    Err(error) => {
                        refused += 1;
                        assert!(matches!(error.http_status(), 400 | 422));
                        let lines = text.split_inclusive('\n').count();
                        assert!(
                            error.line_number().is_none_or(|line| (1..=lines).contains(&line)),
                            "{error}"
                        );
                    }
                }
            }
            std::mem::forget(case);
        }
    }
    println!("{answered} answered, {refused} refused");
    assert!(
        answered > 5_000 && refused > 5_000,
        "{answered} answered, {refused} refused"
    );
}

/// Prints the offer when an assertion fails before it is forgotten.
struct Case<'a>(&'a str, usize, &'a str);

impl Drop for Case<'_> {
    fn drop(&mut self) {
        eprintln!("--- {} round {}\n{}", self.0, self.1, self.2);
    }
}

#[test]
fn prefixes_of_an_offer_are_refused_or_answered_soundly() {
    for (name, offer) in all_recorded() {
        for end in (0..offer.len()).step_by(3) {
            let bytes = &offer.as_bytes()[..end];
            match Offer::parse(bytes) {
                Ok(_) => assert!(bytes.ends_with(b"\n"), "{name} cut at {end} was taken"),
                Err(error) => assert!(matches!(error.http_status(), 400 | 422)),
            }
        }
    }
}

#[test]
fn the_largest_body_is_judged_at_once() {
    let us = Us::new();
    let candidates = "a=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n".repeat(1_300);
    let offer = format!("{}{candidates}", crate::sdp::recorded(crate::sdp::OBS));
    assert!(offer.len() < 64 * 1024);
    let offer = Offer::parse(offer.as_bytes()).unwrap();
    let (_, answer) = millstream_core::sdp::answer_whip_offer(&offer, &us.local()).unwrap();
    assert_eq!(answer.sdp, publish(&crate::sdp::recorded(crate::sdp::OBS)).unwrap().1);
}
