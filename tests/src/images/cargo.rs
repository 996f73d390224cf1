//! Static release binaries of this workspace, which run on an empty root.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::{self, run_noting, run_program};
use crate::site::workspace;

/// The packages with a program for an image, each of the same name.
const PROGRAMS: [&str; 2] = ["warren-operator", "warren-sidecar"];

/// Builds binaries of this workspace, each in the package of the same name, and gives their paths in the same order.
pub async fn static_binaries(names: &[&str]) -> Result<Vec<PathBuf>> {
    static_binaries_noting(names, &|_| ()).await
}

/// The same, and tells `note` what cargo says meanwhile.
pub(super) async fn static_binaries_noting(
    names: &[&str],
    note: &(dyn Fn(&str) + Sync),
) -> Result<Vec<PathBuf>> {
    // Always all of them: cargo builds dependencies with the features that the named packages ask for together, so that
    // another choice of packages would build everything anew.
    let args: Vec<_> = PROGRAMS.iter().flat_map(|name| ["-p", name, "--bin", name]).collect();
    let output = build(&args, note).await?;
    names.iter().map(|name| executable(&output, name)).collect()
}

/// Builds one binary from the arguments that name it, such as `["-p", "warren-sidecar", "--example", "peer"]`.
pub async fn static_binary(name: &str, args: &[&str]) -> Result<PathBuf> {
    executable(&build(args, &|_| ()).await?, name)
}

async fn build(args: &[&str], note: &(dyn Fn(&str) + Sync)) -> Result<String> {
    let version = run_program("rustc", ["-vV"]).await?;
    let target =
        version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc tells no host")?;
    let mut cargo = command::cargo();
    // For this target only: flags for all would build the build scripts, and then everything else, anew each time.
    let variable = format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase().replace('-', "_"));
    // A panic aborts, so nothing unwinds by these tables. For a package with a profile of its own, cargo takes debug
    // information out but leaves the symbols that the workspace's profile says to strip.
    let flags = "-C target-feature=+crt-static -C force-unwind-tables=no -C strip=symbols";
    cargo.env(variable, flags).current_dir(workspace());
    // These would win over it.
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo
        .args(["build", "--release", "--message-format=json-render-diagnostics", "--target", target])
        .args(args);
    run_noting(&mut cargo, note).await.context("build static binaries")
}

/// Cargo writes one JSON object a line; the one of a binary names the file.
fn executable(output: &str, name: &str) -> Result<PathBuf> {
    let messages = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter(|message| message["reason"] == "compiler-artifact" && message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo built no program named {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_among_cargos_messages() {
        let output = r#"{"reason":"compiler-artifact","target":{"name":"serde"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"warren-sidecar"},"executable":"/t/warren-sidecar"}"#;
        assert_eq!(executable(output, "warren-sidecar").unwrap(), PathBuf::from("/t/warren-sidecar"));
        assert!(executable(output, "serde").is_err());
    }
}
