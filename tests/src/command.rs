//! Short commands: run, wait, and give back the output or an error that shows what the command said.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

/// `cargo`, without what the cargo that runs this program says about its package.
///
/// Build scripts ask to be run again when such variables differ (`ring`'s does), and all that depends on them is then built anew.
pub fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let about_a_package = |name: &str| {
            name == "OUT_DIR" || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        };
        if name.to_str().is_some_and(about_a_package) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Runs a command and gives its standard output.
pub async fn run(command: &mut Command) -> Result<String> {
    feed(command, None).await
}

/// Does what fetches something, up to three times.
pub(crate) async fn again<T>(mut fetch: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    for _ in 0..2 {
        if let Ok(fetched) = fetch().await {
            return Ok(fetched);
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    fetch().await
}

/// Runs a command that fetches something, up to three times.
pub async fn run_again(command: &mut Command) -> Result<String> {
    again(async || run(command).await).await
}

/// Runs a program by name and gives its standard output.
pub async fn run_program<S: AsRef<OsStr>>(
    program: &str,
    args: impl IntoIterator<Item = S>,
) -> Result<String> {
    run(Command::new(program).args(args)).await
}

/// Runs a command with `input` on its standard input and gives its standard output.
pub async fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    feed(command, Some(input)).await
}

/// Runs a command, tells `note` each line of its standard error as it comes, and gives its standard output.
pub async fn run_noting(command: &mut Command, note: &(dyn Fn(&str) + Sync)) -> Result<String> {
    let line = describe(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("start {line}: is it installed?"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let listen = async {
        let mut said = String::new();
        let mut lines = BufReader::new(stderr.context("no standard error")?).lines();
        while let Some(text) = lines.next_line().await? {
            note(text.trim());
            said = said + &text + "\n";
        }
        anyhow::Ok(said)
    };
    let collect = async {
        let mut text = String::new();
        stdout.context("no standard output")?.read_to_string(&mut text).await?;
        anyhow::Ok(text)
    };
    let (said, output, status) = tokio::try_join!(listen, collect, async { Ok(child.wait().await?) })?;
    if !status.success() {
        bail!("{}: {status}\n{}", shorten(&line), tail(&said));
    }
    Ok(output)
}

async fn feed(command: &mut Command, input: Option<&str>) -> Result<String> {
    let line = describe(command);
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("start {}: is it installed?", shorten(&line)))?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        // A command that does not read all of its input says why by its exit code.
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    let output = child.wait_with_output().await.with_context(|| line.clone())?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}\n{}{}", shorten(&line), output.status, tail(&stderr), tail(&stdout));
    }
    Ok(stdout)
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.as_std().get_program()).chain(command.as_std().get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn shorten(line: &str) -> String {
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

/// The last lines of an output: where commands say what went wrong.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].iter().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failing_command_shows_what_it_said() {
        let error = run_program("sh", ["-c", "echo why >&2; exit 3"]).await.unwrap_err().to_string();
        assert!(error.contains("why") && error.contains('3'), "{error}");
    }

    #[tokio::test]
    async fn what_a_command_says_is_told_while_it_runs() {
        let heard = std::sync::Mutex::new(Vec::new());
        let note = |line: &str| heard.lock().unwrap().push(line.to_owned());
        let mut command = Command::new("sh");
        let output =
            run_noting(command.args(["-c", "echo one >&2; echo out; echo two >&2"]), &note).await.unwrap();
        assert_eq!(output, "out\n");
        assert_eq!(*heard.lock().unwrap(), ["one", "two"]);
    }

    #[tokio::test]
    async fn input_reaches_the_command() {
        assert_eq!(run_with_input(&mut Command::new("cat"), "hello").await.unwrap(), "hello");
    }
}
