//! qbridge
fn main() {}
