//! What the machine must have before anything is built: compilers, and the Debian packages that are missing.

use std::io::{IsTerminal, Write};

use anyhow::{Result, bail};
use warren_tests::progress::step;
use warren_tests::{packages, site};

use crate::progress::Terminal;

/// Whether packages may be installed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consent {
    /// The caller said so.
    Given,
    /// Ask, where there is someone to ask.
    Ask,
}

/// Checks who calls and the compilers, and installs what is missing.
pub(crate) async fn prepare(progress: &Terminal, consent: Consent) -> Result<()> {
    site::need_root()?;
    packages::check_compilers().await?;
    let missing = packages::missing();
    if missing.is_empty() {
        return Ok(());
    }
    if consent == Consent::Ask && std::io::stdin().is_terminal() && !agreed(&missing)? {
        bail!("nothing was installed; install them yourself, or answer y");
    }
    let title = format!("Debian packages {}", missing.join(" "));
    step(progress, &title, packages::install(&missing)).await
}

#[allow(clippy::print_stderr, reason = "this is the part that asks the reader")]
fn agreed(missing: &[&str]) -> Result<bool> {
    eprint!("These Debian packages will be installed by apt-get: {}. Go on? [y/N] ", missing.join(" "));
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
