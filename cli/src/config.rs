//! Files of settings: a TOML table a command, whose keys are the names of the command's flags. A key outside of a table
//! is for every command that has such a flag.
//!
//! What a file says is put among the arguments, as if it were typed, unless the command line or the environment say it,
//! or what excludes it. So flags have one meaning and one check, wherever they come from.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, Parser};
use toml::{Table, Value};

use crate::args::Cli;
use crate::directories;

/// The user's own file, where no other is named.
const USER_FILE: &str = "config.toml";

/// The command line, with what the file says. Wrong usage ends the process, as [`clap::Parser::parse`] does.
///
/// # Errors
/// The file cannot be read, or has a key or a value that no flag has.
pub fn parse() -> Result<Cli> {
    let args = std::env::args_os().collect();
    Ok(Cli::parse_from(with_file(&Cli::command(), args)?))
}

/// The arguments, with those of the file that they or the environment name, or of the user's own.
fn with_file(command: &Command, args: Vec<OsString>) -> Result<Vec<OsString>> {
    // Whatever else is wrong with the arguments is told when they are parsed.
    let lenient = command.clone().ignore_errors(true);
    let Ok(matches) = lenient.try_get_matches_from(&args) else {
        return Ok(args);
    };
    let Some(path) = path(&matches) else {
        return Ok(args);
    };
    let named = || path.display().to_string();
    let text = std::fs::read_to_string(&path).with_context(named)?;
    let table: Table = text.parse().with_context(named)?;
    with_table(command, &table, &matches, args).with_context(named)
}

fn path(matches: &ArgMatches) -> Option<PathBuf> {
    let users_own = || {
        directories::qbridge("XDG_CONFIG_HOME", ".config")
            .map(|directory| directory.join(USER_FILE))
            .filter(|file| file.exists())
    };
    matches.get_one("config").cloned().or_else(users_own)
}

fn with_table(
    command: &Command,
    table: &Table,
    matches: &ArgMatches,
    mut args: Vec<OsString>,
) -> Result<Vec<OsString>> {
    check_keys(command, table)?;
    let Some((name, typed)) = matches.subcommand() else {
        return Ok(args);
    };
    let Some(command) = command.find_subcommand(name) else {
        return Ok(args);
    };
    let own = match table.get(name) {
        Some(Value::Table(own)) => own.clone(),
        _ => Table::new(),
    };
    let of_all = table
        .iter()
        .filter(|(key, value)| !value.is_table() && !own.contains_key(*key));
    let (mut flags, mut positionals) = (Vec::new(), Vec::new());
    for (key, value) in own.iter().chain(of_all) {
        let Some(arg) = argument(command, key) else {
            continue;
        };
        let values = values(arg, key, value)?;
        if is_said(typed, command, arg) {
            continue;
        }
        match arg.is_positional() {
            true => positionals.extend(values),
            false => flags.extend(values),
        }
    }
    check_values(command, flags.iter().chain(&positionals))?;
    let place = behind_command(&args);
    args.splice(place..place, flags);
    args.extend(positionals);
    Ok(args)
}

/// Refuses what no command has, whichever is to be run.
fn check_keys(command: &Command, table: &Table) -> Result<()> {
    for (key, value) in table {
        match value {
            Value::Table(own) => {
                let Some(command) = command.find_subcommand(key) else {
                    bail!("there is no command {key:?}: a table has the name of one");
                };
                if let Some(key) = own.keys().find(|key| argument(command, key).is_none()) {
                    bail!(
                        "there is no option {key:?}: the keys of [{name}] are the names of `qbridge {name}`'s flags",
                        name = command.get_name()
                    );
                }
            }
            _ if command
                .get_subcommands()
                .any(|command| argument(command, key).is_some()) => {}
            _ => bail!("there is no option {key:?}: the keys are the names of flags"),
        }
    }
    Ok(())
}

/// The argument that a key names: that of a flag, or the only one without.
fn argument<'a>(command: &'a Command, key: &str) -> Option<&'a Arg> {
    let is_only = command.get_positionals().count() == 1;
    command.get_arguments().find(|arg| match arg.get_long() {
        Some(long) => long == key,
        None => is_only && arg.is_positional() && arg.get_id() == key,
    })
}

/// Whether the command line or the environment say what an argument says, or something that excludes it.
fn is_said(typed: &ArgMatches, command: &Command, arg: &Arg) -> bool {
    let excludes = |one: &Arg, other: &Arg| {
        let mut excluded = command.get_arg_conflicts_with(one).into_iter();
        excluded.any(|arg| arg.get_id() == other.get_id())
    };
    command
        .get_arguments()
        .filter(|other| {
            matches!(
                typed.value_source(other.get_id().as_str()),
                Some(ValueSource::CommandLine | ValueSource::EnvVariable)
            )
        })
        .any(|other| other.get_id() == arg.get_id() || excludes(other, arg) || excludes(arg, other))
}

/// What would be typed for a key.
fn values(arg: &Arg, key: &str, value: &Value) -> Result<Vec<OsString>> {
    let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
    let may_be_flag = arg.get_num_args().is_some_and(|n| n.min_values() == 0);
    let takes_several = matches!(arg.get_action(), ArgAction::Append);
    let typed = |value: &Value| {
        let text = text(key, value)?;
        Ok(match arg.is_positional() {
            true => text.into(),
            false => format!("--{key}={text}").into(),
        })
    };
    match value {
        Value::Boolean(false) if is_flag || may_be_flag => Ok(Vec::new()),
        Value::Boolean(true) if is_flag || may_be_flag => Ok(vec![format!("--{key}").into()]),
        _ if is_flag => bail!("{key} must be true or false"),
        Value::Array(values) if takes_several => values.iter().map(typed).collect(),
        value => Ok(vec![typed(value)?]),
    }
}

fn text(key: &str, value: &Value) -> Result<String> {
    Ok(match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        _ => bail!("{key} cannot be a {}", value.type_str()),
    })
}

/// Refuses values here that would be refused among the arguments, where nothing says that they come from the file.
fn check_values<'a>(command: &Command, args: impl Iterator<Item = &'a OsString>) -> Result<()> {
    let alone = command
        .clone()
        .no_binary_name(true)
        .mut_args(|arg| arg.required(false).env(None::<&str>));
    match alone.try_get_matches_from(args) {
        // The rest may be typed.
        Err(error) if error.kind() != ErrorKind::MissingRequiredArgument => {
            let error = error.to_string();
            let lines = error.lines().take_while(|line| !line.is_empty());
            let lines: Vec<&str> = lines.map(str::trim).collect();
            bail!("{}", lines.join(" ").trim_start_matches("error: "))
        }
        _ => Ok(()),
    }
}

/// Where the command's own arguments begin. Before it only `--config` may stand.
fn behind_command(args: &[OsString]) -> usize {
    let mut place = 1;
    while let Some(arg) = args.get(place) {
        place += match arg.to_str() {
            Some("--config") => 2,
            Some(flag) if flag.starts_with('-') => 1,
            _ => return place + 1,
        };
    }
    args.len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use crate::args::{CaptionArgs, Command as Parsed, ServeArgs};

    fn parse(config: &str, args: &[&str]) -> Result<Parsed> {
        let args: Vec<OsString> = std::iter::once(&"qbridge")
            .chain(args)
            .map(OsString::from)
            .collect();
        let command = Cli::command();
        let matches = command.clone().ignore_errors(true);
        let matches = matches.try_get_matches_from(&args)?;
        let args = with_table(&command, &config.parse()?, &matches, args)?;
        Ok(Cli::try_parse_from(args)?.command)
    }

    fn serve(config: &str, args: &[&str]) -> Result<ServeArgs> {
        match parse(config, &[&["serve"], args].concat())? {
            Parsed::Serve(args) => Ok(args),
            _ => panic!("another command"),
        }
    }

    fn caption(config: &str, args: &[&str]) -> Result<CaptionArgs> {
        match parse(config, &[&["caption"], args].concat())? {
            Parsed::Caption(args) => Ok(args),
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
            allow-remote-images = ["a.example", "b.example"]
        "#;
        let args = serve(config, &["--port", "9001"]).unwrap();
        assert_eq!(args.bundles, ["small", "large=/srv/large"]);
        assert_eq!((args.port, args.slots, args.no_auth), (9001, 8, true));
        assert_eq!(args.cors_origins.len(), 2);
        assert_eq!(args.media_path, Some("pictures".into()));
        assert_eq!(args.allow_remote_images.unwrap().len(), 2);
        let args = serve(config, &["other"]).unwrap();
        assert_eq!(args.bundles, ["other"]);
        // A flag that takes values, or none.
        let hosts = |config| serve(config, &["demo"]).unwrap().allow_remote_images;
        assert_eq!(
            hosts("allow-remote-images = true"),
            Some(vec!["*".to_owned()])
        );
        assert_eq!(hosts("allow-remote-images = false"), None);
    }

    #[test]
    fn a_table_is_for_its_command_and_wins_over_what_is_for_all() {
        let config = r#"
            slots = 3
            threads = 2
            [caption]
            slots = 5
            min-score = -1.5
            scores = false
            [serve]
            port = 9000
            bundles = "demo"
        "#;
        let args = caption(config, &["demo", "photos/", "--", "-x.png"]).unwrap();
        assert_eq!((args.slots, args.min_score), (5, Some(-1.5)));
        assert_eq!((args.engine.threads, args.scores), (Some(2), false));
        assert_eq!(args.inputs, ["photos/", "-x.png"]);
        let args = serve(config, &[]).unwrap();
        assert_eq!((args.slots, args.port), (3, 9000));
        assert_eq!(args.bundles, ["demo"]);
        let before = ["--config", "serve", "inspect", "demo"];
        assert!(matches!(parse(config, &before), Ok(Parsed::Inspect(_))));
    }

    #[test]
    fn what_is_typed_drops_what_it_excludes() {
        let args = caption("resume = true", &["demo", "a.png", "--overwrite"]).unwrap();
        assert!(args.overwrite && !args.resume);
        let error = caption("resume = true\noverwrite = true", &["demo", "a.png"]).unwrap_err();
        assert!(format!("{error:#}").contains("cannot be used with"));
        // A certificate alone would be a server without TLS.
        assert!(serve("tls-cert = 'chain.pem'", &["demo"]).is_err());
        assert!(serve("tls-cert = 'chain.pem'", &["demo", "--tls-key", "key.pem"]).is_ok());
    }

    #[test]
    fn what_no_flag_takes_is_refused() {
        for (config, told) in [
            ("prot = 1", "there is no option \"prot\""),
            ("config = 'a'", "there is no option \"config\""),
            ("help = true", "there is no option \"help\""),
            ("api-keys = ['secret']", "there is no option \"api-keys\""),
            ("[serv]\nport = 1", "there is no command \"serv\""),
            (
                "[ask]\nport = 1",
                "there is no option \"port\": the keys of [ask]",
            ),
            ("[ask]\nbundle = 'demo'", "there is no option \"bundle\""),
            ("no-auth = 1", "no-auth must be true or false"),
            ("port = true", "port cannot be a boolean"),
            ("port = [1]", "port cannot be a array"),
            ("port = 99999", "99999 is not in 0..=65535"),
            (
                "log-format = 'xml'",
                "invalid value 'xml' for '--log-format <LOG_FORMAT>' [possible",
            ),
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
