//! The worker as a person would start it. This test also makes cargo build the program before the tests of the gateway.

use std::process::{Command, Stdio};

#[test]
fn a_worker_that_is_started_by_hand_says_that_the_gateway_starts_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_millstream-worker"))
        .stdin(Stdio::null())
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("only the gateway can start it"), "{said}");
}
