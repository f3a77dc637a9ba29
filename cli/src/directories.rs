//! The user's own directories, as the XDG Base Directory Specification names them.

use std::path::PathBuf;

/// `qbridge` in the directory that `variable` names, else in `fallback` below the home directory; none where neither is
/// known.
pub fn qbridge(variable: &str, fallback: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set(variable)
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(set("HOME")?).join(fallback)))
        .map(|directory| directory.join("qbridge"))
}
