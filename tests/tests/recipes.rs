//! The scripts that recipes run, where they need no cluster.

use std::process::{Command, Stdio};

use qbridge_tests::{repository, stdout};

#[test]
fn alt_text_changes_images_and_nothing_else() {
    stdout(
        Command::new("python3")
            .arg("-B")
            .arg(repository().join("tests/alt_text.py"))
            .stdin(Stdio::null()),
    );
}
