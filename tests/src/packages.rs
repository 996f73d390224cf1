//! The Debian packages that the cluster and the brokers are made of.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::command::{again, run};

/// A program that must be there, and the Debian package that brings it.
struct Need {
    /// Any of these files shows that the package is there, however it was installed.
    files: &'static [&'static str],
    package: &'static str,
}

const NEEDS: &[Need] = &[
    Need { files: &["/usr/bin/containerd"], package: "containerd" },
    Need { files: &["/usr/sbin/runc", "/usr/bin/runc"], package: "runc" },
    Need { files: &["/usr/lib/cni/bridge"], package: "containernetworking-plugins" },
    Need { files: &["/usr/sbin/iptables"], package: "iptables" },
    Need { files: &["/usr/sbin/conntrack"], package: "conntrack" },
    Need { files: &["/usr/bin/buildah"], package: "buildah" },
    Need { files: &["/usr/bin/catatonit"], package: "catatonit" },
    Need { files: &["/usr/lib/rabbitmq/bin/rabbitmq-server"], package: "rabbitmq-server" },
    Need { files: &["/usr/bin/prometheus"], package: "prometheus" },
    Need { files: &["/usr/sbin/ip", "/usr/bin/ip", "/sbin/ip"], package: "iproute2" },
    Need { files: &["/usr/sbin/debootstrap"], package: "debootstrap" },
    Need { files: &["/etc/ssl/certs/ca-certificates.crt"], package: "ca-certificates" },
    Need { files: &["/usr/bin/setsid"], package: "util-linux" },
];

/// How long another apt-get is waited for.
const LOCKED: Duration = Duration::from_secs(300);

/// A service must not start because its package was installed: it would take the brokers' ports.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// The packages that are not installed.
pub fn missing() -> Vec<&'static str> {
    let absent = |need: &&Need| !need.files.iter().any(|file| Path::new(file).exists());
    NEEDS.iter().filter(absent).map(|need| need.package).collect()
}

/// Installs packages by apt-get, without starting the services they bring.
pub async fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("no apt-get here; install what these Debian packages bring: {}", packages.join(" "));
    }
    let policy = Policy::deny_services()?;
    let apt = async |args: &[&str]| {
        let mut command = Command::new("apt-get");
        // By itself an update that has fetched nothing ends well.
        let options = ["-y", "-q", "-o", "DPkg::Lock::Timeout=300", "-o", "APT::Update::Error-Mode=any"];
        // What it says is looked into.
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        unlocked(command.args(options).args(args)).await
    };
    // What an installation that was killed has left is put right first: apt-get refuses to begin otherwise.
    let _ =
        run(Command::new("dpkg").args(["--configure", "-a"]).env("DEBIAN_FRONTEND", "noninteractive")).await;
    // One broken source of somebody else's must not stop the packages that the others have.
    let updated = again(async || apt(&["update"]).await).await;
    let install = [&["install", "--no-install-recommends"], packages].concat();
    let installed = again(async || apt(&install).await).await;
    drop(policy);
    installed.with_context(|| match updated {
        Ok(_) => format!("install {}", packages.join(" ")),
        Err(error) => format!("install {}, after apt-get update failed: {error:#}", packages.join(" ")),
    })?;
    Ok(())
}

/// Runs apt-get as soon as no other one, such as that of a machine that has just started, has the lists or the archives: the lock
/// that it waits for by itself is dpkg's alone.
async fn unlocked(command: &mut Command) -> Result<String> {
    let until = Instant::now() + LOCKED;
    loop {
        match run(command).await {
            Err(error) if Instant::now() < until && error.to_string().contains("Could not get lock") => {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            done => return done,
        }
    }
}

/// Fails with what to do when a compiler is missing that no package brings in a fitting version.
pub async fn check_compilers() -> Result<()> {
    let advice = "install Go 1.26 or later from https://go.dev/dl";
    let Ok(go) = run(Command::new("go").arg("version")).await else { bail!("go is not in PATH: {advice}") };
    if !fetches_others(&go) {
        bail!("{} is too old: {advice}", go.trim());
    }
    if run(Command::new("cargo").arg("--version")).await.is_err() {
        bail!("cargo is not in PATH: install Rust by https://rustup.rs");
    }
    Ok(())
}

/// Whether a Go that says this of itself fetches the version that a program asks for, as it does since 1.21.
fn fetches_others(version: &str) -> bool {
    let number = version.split_whitespace().find_map(|word| word.strip_prefix("go1."));
    // What is built from source may have no number.
    let minor = number.and_then(|number| number.split('.').next()?.parse::<u32>().ok());
    minor.is_none_or(|minor| minor >= 21)
}

/// The policy that forbids services to start; the machine's own is put back when the value is dropped.
struct Policy {
    before: Option<String>,
}

impl Policy {
    fn deny_services() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let before = match std::fs::read_to_string(POLICY) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("read {POLICY}")),
        };
        let policy = deny_while(std::process::id(), before.as_deref());
        std::fs::write(POLICY, policy).with_context(|| format!("write {POLICY}"))?;
        std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { before })
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        let _ = match &self.before {
            Some(text) => std::fs::write(POLICY, text),
            None => std::fs::remove_file(POLICY),
        };
    }
}

/// A policy that denies only while this process runs: one that a crash has left behind changes nothing.
fn deny_while(pid: u32, before: Option<&str>) -> String {
    let then = before.and_then(|text| text.strip_prefix("#!/bin/sh")).unwrap_or("\nexit 0\n");
    format!("#!/bin/sh\n[ -d /proc/{pid} ] && exit 101{then}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_that_cannot_fetch_the_version_that_is_needed_is_too_old() {
        assert!(!fetches_others("go version go1.19.8 linux/amd64\n"));
        for fits in
            ["go version go1.21.0 linux/amd64", "go version go1.27rc1 X", "go version devel go1.28-abc"]
        {
            assert!(fetches_others(fits), "{fits}");
        }
    }

    #[tokio::test]
    async fn an_apt_get_that_another_one_locks_out_is_run_again() {
        let folder = tempfile::tempdir().unwrap();
        let script = "test -e ready && exec echo done; touch ready; echo 'E: Could not get lock /var/lib/apt/lists/lock' >&2; exit 100";
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(folder.path());
        assert_eq!(unlocked(&mut command).await.unwrap(), "done\n");
        let other = unlocked(Command::new("sh").args(["-c", "echo else >&2; exit 100"])).await.unwrap_err();
        assert!(other.to_string().contains("else"), "{other}");
    }

    #[test]
    fn the_machines_own_policy_follows_when_the_installer_is_gone() {
        assert_eq!(deny_while(7, None), "#!/bin/sh\n[ -d /proc/7 ] && exit 101\nexit 0\n");
        let own = Some("#!/bin/sh\nexit 101\n");
        assert_eq!(deny_while(7, own), "#!/bin/sh\n[ -d /proc/7 ] && exit 101\nexit 101\n");
    }
}
