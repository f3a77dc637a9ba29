//! What all rows of one output were asked with. Rows of two models or prompts do not belong into one file.

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::{Map, Value};

/// Settings by their names, as they are written.
pub type Settings = Map<String, Value>;

/// Settings as they are once written and read, where numbers have no type of their own.
///
/// # Errors
/// They are no object.
pub fn read_back(settings: &impl Serialize) -> Result<Settings> {
    Ok(serde_json::from_slice(&serde_json::to_vec(settings)?)?)
}

/// Refuses to go on with what was begun with others.
///
/// # Errors
/// It was, and which of them differs.
pub fn check_settings(earlier: &Settings, now: &Settings) -> Result<()> {
    let names = earlier.keys().chain(now.keys());
    for name in names {
        let of = |settings: &Settings| settings.get(name).cloned().unwrap_or_default();
        let (earlier, now) = (of(earlier), of(now));
        if earlier != now {
            bail!(
                "it was begun with {name} = {earlier}, and now it is {now}: name another file, or --overwrite this one"
            );
        }
    }
    Ok(())
}
