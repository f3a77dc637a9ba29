//! `qbridge serve --config FILE`: a TOML file whose keys are the names of the flags. What it says stands in for the flags'
//! defaults, so the command line and the environment win over it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::builder::OsStr;
use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches};
use toml::{Table, Value};

use crate::args::Cli;

const SERVE: &str = "serve";
/// The one argument that has no flag.
const BUNDLES: &str = "bundles";

/// The command line, with the file's defaults. Wrong usage ends the process, as [`clap::Parser::parse`] does.
///
/// # Errors
/// The file cannot be read, or has a key or a kind of value that no flag has.
pub fn parse() -> Result<Cli> {
    let mut command = Cli::command();
    if let Some(path) = path(&command) {
        command = with_file(command, &path)?;
    }
    Cli::from_arg_matches(&command.get_matches()).map_err(|error| error.exit())
}

/// The file that the command line or the environment names, whatever else is wrong with them.
fn path(command: &Command) -> Option<PathBuf> {
    let matches = command.clone().ignore_errors(true).try_get_matches().ok()?;
    matches
        .subcommand_matches(SERVE)?
        .get_one("config")
        .cloned()
}

fn with_file(command: Command, path: &Path) -> Result<Command> {
    let named = || format!("--config {}", path.display());
    let text = std::fs::read_to_string(path).with_context(named)?;
    let table: Table = text.parse().with_context(named)?;
    with_table(command, table).with_context(named)
}

fn with_table(command: Command, table: Table) -> Result<Command> {
    let mut failure = None;
    let command = command.mut_subcommand(SERVE, |mut serve| {
        for (key, value) in table {
            match defaults(&serve, &key, value) {
                Ok((id, defaults)) => {
                    serve = serve.mut_arg(id, |arg| arg.required(false).default_values(defaults));
                }
                Err(error) => failure = Some(error),
            }
        }
        serve
    });
    failure.map_or(Ok(command), Err)
}

/// The argument that a key names, and its values as they would be typed.
fn defaults(serve: &Command, key: &str, value: Value) -> Result<(String, Vec<OsStr>)> {
    let is = |arg: &&Arg| match arg.get_long() {
        Some(long) => long == key && !["config", "help"].contains(&long),
        None => key == BUNDLES && arg.get_id() == BUNDLES,
    };
    let Some(arg) = serve.get_arguments().find(is) else {
        bail!(
            "there is no option {key:?}: the keys are the names of `qbridge serve`'s flags, and {BUNDLES}"
        );
    };
    let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
    let takes_several = matches!(arg.get_action(), ArgAction::Append)
        || arg
            .get_num_args()
            .is_some_and(|range| range.max_values() > 1);
    let values = match value {
        Value::Boolean(value) if is_flag => vec![value.to_string().into()],
        Value::Array(values) if takes_several => values
            .into_iter()
            .map(|value| typed(key, value))
            .collect::<Result<_>>()?,
        _ if is_flag => bail!("{key} must be true or false"),
        value => vec![typed(key, value)?],
    };
    Ok((arg.get_id().to_string(), values))
}

fn typed(key: &str, value: Value) -> Result<OsStr> {
    Ok(match value {
        Value::String(text) => text.into(),
        Value::Integer(number) => number.to_string().into(),
        Value::Float(number) => number.to_string().into(),
        _ => bail!("{key} cannot be a {}", value.type_str()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use crate::args::{Command as Parsed, ServeArgs};

    fn serve(config: &str, args: &[&str]) -> Result<ServeArgs> {
        let command = with_table(Cli::command(), config.parse()?)?;
        let args = ["qbridge", "serve"].iter().chain(args);
        match Cli::from_arg_matches(&command.try_get_matches_from(args)?)?.command {
            Parsed::Serve(args) => Ok(args),
            _ => panic!("another command"),
        }
    }

    #[test]
    fn the_file_stands_in_for_what_is_not_typed() {
        let config = r#"
            bundles = ["small", "large=/srv/large"]
            port = 9000
            slots = 8
            no-auth = true
            cors-origin = ["https://a.example", "https://b.example"]
            cache-type = "q8_0"
            media-path = "pictures"
        "#;
        let args = serve(config, &["--port", "9001"]).unwrap();
        assert_eq!(args.bundles, ["small", "large=/srv/large"]);
        assert_eq!((args.port, args.slots, args.no_auth), (9001, 8, true));
        assert_eq!(args.cors_origins.len(), 2);
        assert_eq!(args.media_path, Some("pictures".into()));
        let args = serve(config, &["other"]).unwrap();
        assert_eq!(args.bundles, ["other"]);
    }

    #[test]
    fn what_no_flag_takes_is_refused() {
        for (config, told) in [
            ("prot = 1", "there is no option \"prot\""),
            ("config = 'a'", "there is no option \"config\""),
            ("api-keys = ['secret']", "there is no option \"api-keys\""),
            ("no-auth = 1", "no-auth must be true or false"),
            ("port = true", "port cannot be a boolean"),
            ("port = [1]", "port cannot be a array"),
            ("port = 99999", "99999 is not in 0..=65535"),
            ("log-format = 'xml'", "invalid value 'xml'"),
        ] {
            let error = serve(config, &["demo"]).unwrap_err();
            assert!(format!("{error:#}").contains(told), "{config}: {error:#}");
        }
    }

    #[test]
    fn a_bundle_is_needed_from_either() {
        assert!(serve("", &[]).is_err());
        assert!(serve("bundles = ['demo']", &[]).is_ok());
        assert!(serve("bundles = 'demo'", &[]).is_ok());
    }
}
