#![expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]

use super::*;
use rtc_crypto::providers::AwsLcRsProvider;
use rtc_stun::attributes::ATTR_PRIORITY;
use rtc_stun::message::TransactionId;

const PWD: &str = "0123456789abcdefghijkl";
const PEER_PWD: &str = "ghijklmnopqrstuvwxyz01";

fn agent() -> IceLite {
    let [local, remote] = [("local", PWD), ("peer", PEER_PWD)].map(|(ufrag, pwd)| IceCredentials {
        ufrag: ufrag.into(),
        pwd: pwd.into(),
    });
    IceLite::new(local, remote, Arc::new(AwsLcRsProvider::new()))
}

fn check(username: &str, pwd: &str, nominate: bool, priority: bool) -> Vec<u8> {
    let provider = AwsLcRsProvider::new();
    let mut m = Message::new();
    m.set_type(BINDING_REQUEST);
    m.transaction_id = TransactionId([7; 12]);
    m.write_header();
    m.add(ATTR_USERNAME, username.as_bytes());
    if priority {
        m.add(ATTR_PRIORITY, &[0, 0, 0, 1]);
    }
    if nominate {
        m.add(ATTR_USE_CANDIDATE, &[]);
    }
    MessageIntegrity::new_short_term_integrity_with_provider(pwd.into(), provider.crypto())
        .add_to(&mut m)
        .unwrap();
    FINGERPRINT.add_to(&mut m).unwrap();
    m.raw
}

fn random() -> impl FnMut() -> u32 {
    let mut last = 0;
    move || {
        last += 1;
        last
    }
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

#[test]
fn a_valid_check_is_answered_at_once_with_the_address_it_came_from() {
    let mut ice = agent();
    let now = Instant::now();
    let answered = ice
        .handle_connectivity_check(now, address(9), &check("local:peer", PWD, true, true), &mut random())
        .unwrap();
    assert!(answered.destination_moved);
    assert_eq!(ice.remote_destination(), Some(address(9)));
    let mut response = decode_stun_message(&answered.response).unwrap();
    assert_eq!(response.typ, BINDING_SUCCESS);
    MessageIntegrity::check(&mut response, PWD.as_bytes(), AwsLcRsProvider::new().crypto()).unwrap();
    let mut mapped = XorMappedAddress::default();
    rtc_stun::message::Getter::get_from(&mut mapped, &response).unwrap();
    assert_eq!((mapped.ip, mapped.port), (address(9).ip(), 9));
}

#[test]
fn a_check_without_priority_and_role_is_answered() {
    let mut ice = agent();
    assert!(
        ice.handle_connectivity_check(
            Instant::now(),
            address(9),
            &check("local:peer", PWD, false, false),
            &mut random()
        )
        .is_ok()
    );
    assert_eq!(ice.remote_destination(), Some(address(9)));
}

#[test]
fn the_destination_moves_only_on_an_authenticated_nomination() {
    let mut ice = agent();
    let now = Instant::now();
    ice.handle_connectivity_check(now, address(1), &check("local:peer", PWD, true, true), &mut random())
        .unwrap();
    ice.handle_connectivity_check(now, address(2), &check("local:peer", PWD, false, true), &mut random())
        .unwrap();
    assert_eq!(ice.remote_destination(), Some(address(1)));
    let forged = ice.handle_connectivity_check(
        now,
        address(3),
        &check("local:peer", "wrongwrongwrongwrongwrong", true, true),
        &mut random(),
    );
    assert_eq!(forged.unwrap_err(), StunRejection::BadIntegrity);
    assert!(!ice.is_address_valid(now, address(3)));
    ice.handle_connectivity_check(now, address(2), &check("local:peer", PWD, true, true), &mut random())
        .unwrap();
    assert_eq!(ice.remote_destination(), Some(address(2)));
}

#[test]
fn a_nomination_that_was_added_behind_the_integrity_moves_nothing() {
    let mut ice = agent();
    let now = Instant::now();
    ice.handle_connectivity_check(now, address(1), &check("local:peer", PWD, false, true), &mut random())
        .unwrap();
    let mut added = decode_stun_message(&check("local:peer", PWD, false, true)).unwrap();
    added.add(ATTR_USE_CANDIDATE, &[]);
    assert!(
        !ice.handle_connectivity_check(now, address(2), &added.raw, &mut random())
            .unwrap()
            .destination_moved
    );
    assert_eq!(ice.remote_destination(), Some(address(1)));
}

#[test]
fn a_lost_address_is_not_believed_and_may_come_back() {
    let (mut ice, now, random) = (agent(), Instant::now(), &mut random());
    let nomination = check("local:peer", PWD, true, true);
    ice.handle_connectivity_check(now, address(1), &nomination, random)
        .unwrap();
    ice.remove_address(address(1));
    assert_eq!(ice.remote_destination(), None);
    assert!(ice.has_received_check() && !ice.is_address_valid(now, address(1)));
    // Before the handshake the next check decides, also one from the same address.
    assert!(
        ice.handle_connectivity_check(now, address(1), &nomination, random)
            .unwrap()
            .destination_moved
    );
    ice.require_validation_of_new_destination();
    ice.remove_address(address(1));
    // After it, an address is proven first.
    ice.handle_connectivity_check(now, address(1), &nomination, random)
        .unwrap();
    assert_eq!(ice.remote_destination(), None);
    let (to, _) = ice.poll_connectivity_check(now).expect("a check of ours");
    assert_eq!(to, address(1));
    ice.remove_address(address(1));
    assert_eq!(ice.poll_connectivity_check(now + Duration::from_secs(1)), None);
}

/// C-11.
#[test]
fn an_answer_proves_the_path_without_saying_our_address() {
    let (mut ice, now, random) = (agent(), Instant::now(), &mut random());
    let nomination = check("local:peer", PWD, true, true);
    ice.handle_connectivity_check(now, address(1), &nomination, random)
        .unwrap();
    ice.require_validation_of_new_destination();
    ice.handle_connectivity_check(now, address(2), &nomination, random)
        .unwrap();
    let (to, ours) = ice.poll_connectivity_check(now).expect("a check to the new address");
    assert_eq!(to, address(2));
    let mut answer = Message::new();
    answer.set_type(BINDING_SUCCESS);
    answer.transaction_id = decode_stun_message(&ours).unwrap().transaction_id;
    answer.write_header();
    MessageIntegrity::new_short_term_integrity_with_provider(PEER_PWD.into(), AwsLcRsProvider::new().crypto())
        .add_to(&mut answer)
        .unwrap();
    ice.handle_check_response(now, address(2), &answer.raw).unwrap();
    assert_eq!(ice.remote_destination(), Some(address(2)));
}

/// P-16, P-18.
#[test]
fn a_restart_replaces_the_session_when_the_peer_nominates_with_it_and_not_before() {
    let (mut ice, now) = (agent(), Instant::now());
    let random = &mut random();
    let new = |ufrag: &str, pwd: &str| IceCredentials {
        ufrag: ufrag.into(),
        pwd: pwd.into(),
    };
    let old = check("local:peer", PWD, true, true);
    ice.handle_connectivity_check(now, address(1), &old, random).unwrap();
    ice.require_validation_of_new_destination();
    // A restart that the peer never uses, and another one.
    assert_eq!(ice.restart(new("local2", PWD), new("peer2", PEER_PWD)), None);
    ice.handle_connectivity_check(now, address(1), &old, random).unwrap();
    let unused = ice.restart(new("local3", PWD), new("peer3", PEER_PWD));
    assert_eq!(unused.as_deref(), Some("local2"));
    ice.handle_connectivity_check(now, address(1), &old, random).unwrap();
    let never = check("local2:peer2", PWD, true, true);
    assert_eq!(
        ice.handle_connectivity_check(now, address(1), &never, random)
            .unwrap_err(),
        StunRejection::WrongUsername
    );
    // The peer begins with the new one: it decides, the old one is only answered.
    ice.handle_connectivity_check(now, address(1), &check("local3:peer3", PWD, false, true), random)
        .unwrap();
    ice.handle_connectivity_check(now, address(2), &old, random).unwrap();
    assert_eq!(ice.poll_connectivity_check(now), None, "no trial for the old one");
    ice.handle_connectivity_check(now, address(1), &check("local3:peer3", PWD, true, true), random)
        .unwrap();
    assert_eq!(
        ice.handle_connectivity_check(now, address(1), &old, random)
            .unwrap_err(),
        StunRejection::WrongUsername
    );
    assert_eq!(ice.remote_destination(), Some(address(1)));
    assert_eq!(ice.restart(new("local4", PWD), new("peer4", PEER_PWD)), None);
}

#[test]
fn an_address_expires_without_checks_and_the_number_is_bounded() {
    let mut ice = agent();
    let now = Instant::now();
    for port in 1..100 {
        ice.handle_connectivity_check(
            now,
            address(port),
            &check("local:peer", PWD, port == 1, true),
            &mut random(),
        )
        .unwrap();
    }
    assert_eq!(ice.learned_addresses.len(), MAX_LEARNED_ADDRESSES);
    assert!(ice.is_address_valid(now, address(1)));
    assert!(!ice.is_address_valid(now + ADDRESS_CONSENT_LIFETIME, address(1)));
}

#[test]
fn truncated_and_lying_checks_are_refused_without_a_panic() {
    let mut ice = agent();
    let good = check("local:peer", PWD, true, true);
    for length in 0..good.len() {
        assert!(
            ice.handle_connectivity_check(Instant::now(), address(1), &good[..length], &mut random())
                .is_err()
        );
    }
    for position in 0..good.len() {
        for flip in [1u8, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[position] ^= flip;
            let _ = ice.handle_connectivity_check(Instant::now(), address(1), &bad, &mut random());
            let _ = read_local_ufrag(&bad);
        }
    }
    // MESSAGE-INTEGRITY that claims to be empty.
    let mut m = Message::new();
    m.set_type(BINDING_REQUEST);
    m.write_header();
    m.add(ATTR_USERNAME, b"local:peer");
    m.add(ATTR_MESSAGE_INTEGRITY, &[]);
    assert_eq!(
        ice.handle_connectivity_check(Instant::now(), address(1), &m.raw, &mut random())
            .unwrap_err(),
        StunRejection::Malformed
    );
}
