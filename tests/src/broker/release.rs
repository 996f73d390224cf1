//! The programs of a release of RabbitMQ: the installed package, or another Debian's in a root of its own.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Version;
use crate::command::{again, run_program};
use crate::leftovers;
use crate::site::{Site, lock};

/// Seconds that one try to fetch a release may take: a mirror may be silent for ever.
const LONGEST_FETCH: &str = "900";

/// With the usual 1,024 files a broker hangs at 1,000 quorum queues; a million makes Erlang's tables large.
const RAISE_LIMIT: &str = "n=$(ulimit -H -n); { [ \"$n\" = unlimited ] || [ \"$n\" -gt 65536 ]; } && n=65536; \
                           ulimit -S -n \"$n\"";

/// Where a release's programs are.
#[derive(Debug, Clone)]
pub(super) struct Release {
    /// A root of its own; none for the installed package.
    root: Option<PathBuf>,
}

/// A program with its arguments.
pub(super) struct Launch {
    pub(super) program: PathBuf,
    pub(super) args: Vec<OsString>,
}

impl Release {
    /// The release, which is fetched first when it is not here.
    pub(super) async fn get(site: &Site, version: Version) -> Result<Self> {
        let (name, suite) = match version {
            Version::V3_10 => ("3.10", "bookworm"),
            Version::V4_0 => ("4.0", "trixie"),
        };
        let installed = suite == codename()?;
        Ok(Self { root: if installed { None } else { Some(fetch(site, name, suite).await?) } })
    }

    /// A broker's folder, as its own programs see it.
    pub(super) fn inside(&self, dir: &Path) -> String {
        match self.root {
            Some(_) => "/mnt".to_owned(),
            None => dir.display().to_string(),
        }
    }

    /// How to run one of RabbitMQ's programs for the broker with this folder.
    ///
    /// The mounts that another root needs are made in a mount namespace of the program's own: they go with it.
    pub(super) fn launch(&self, dir: &Path, program: &str, args: &[&str]) -> Launch {
        let (outer, mut words): (&str, Vec<OsString>) = match &self.root {
            None => ("sh", vec!["-c".into(), format!("{RAISE_LIMIT}; exec \"$@\"").into(), "sh".into()]),
            Some(root) => {
                let script = format!(
                    "set -e; root=$1; dir=$2; shift 2; mount --rbind /proc \"$root/proc\"; mount --rbind /dev \"$root/dev\"; \
                     mount --bind \"$dir\" \"$root/mnt\"; {RAISE_LIMIT}; exec chroot \"$root\" \"$@\""
                );
                let shell = ["--mount", "sh", "-c", &script, "sh"].map(OsString::from);
                ("unshare", shell.into_iter().chain([root.into(), dir.into()]).collect())
            }
        };
        words.push(format!("/usr/lib/rabbitmq/bin/{program}").into());
        words.extend(args.iter().map(OsString::from));
        Launch { program: outer.into(), args: words }
    }
}

/// The root with the release of RabbitMQ that another Debian has, made once: it takes a minute or two.
async fn fetch(site: &Site, name: &str, suite: &str) -> Result<PathBuf> {
    let cache = site.state.join("cache");
    let root = cache.join(format!("rabbitmq-{name}"));
    std::fs::create_dir_all(&cache)?;
    let _one = lock(&cache.join("lock")).await?;
    if root.join("usr/lib/rabbitmq/bin/rabbitmq-server").exists() {
        return Ok(root);
    }
    // Made under another name, so that a root which was not finished is never used.
    let partial = cache.join(format!("rabbitmq-{name}.partial"));
    let mirror = mirror().context("find the Debian mirror in apt's sources")?;
    let packages = "--include=rabbitmq-server,ca-certificates";
    let fetched = again(async || {
        leftovers::unmount(&[&partial])?;
        leftovers::remove(&partial)?;
        let args: [&OsStr; 7] = [
            LONGEST_FETCH.as_ref(),
            "debootstrap".as_ref(),
            "--variant=minbase".as_ref(),
            packages.as_ref(),
            suite.as_ref(),
            partial.as_ref(),
            mirror.as_ref(),
        ];
        run_program("timeout", args).await
    });
    fetched.await.with_context(|| format!("fetch RabbitMQ {name}"))?;
    std::fs::copy("/etc/hosts", partial.join("etc/hosts"))?;
    leftovers::unmount(&[&partial])?;
    std::fs::rename(&partial, &root)?;
    Ok(root)
}

/// The name of this machine's Debian.
fn codename() -> Result<String> {
    let release = std::fs::read_to_string("/etc/os-release")?;
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.unwrap_or_default().to_owned())
}

/// The mirror from which this machine has its own Debian.
fn mirror() -> Result<String> {
    let codename = codename()?;
    let mut texts = vec![std::fs::read_to_string("/etc/apt/sources.list").unwrap_or_default()];
    for entry in std::fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten() {
        texts.push(std::fs::read_to_string(entry.path()).unwrap_or_default());
    }
    let found = texts.iter().find_map(|text| mirror_in(text, &codename));
    let address = found.with_context(|| format!("no source has the suite {codename}"))?;
    // Debian's images for clouds name a list of mirrors: <https://manpages.debian.org/apt-transport-mirror>.
    match address.strip_prefix("mirror+file:") {
        Some(list) => {
            let list = std::fs::read_to_string(list).with_context(|| format!("read {list}"))?;
            first_of(&list).with_context(|| format!("{address} names no mirror"))
        }
        None => Ok(address),
    }
}

/// The first address of a list of mirrors.
fn first_of(list: &str) -> Option<String> {
    let lines = list.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.flat_map(str::split_whitespace).next().map(str::to_owned)
}

/// The address of a suite in a list of sources, in either of apt's two forms.
fn mirror_in(sources: &str, suite: &str) -> Option<String> {
    let one_line = sources.lines().find_map(|line| {
        let options_end = line.find(']').map_or(0, |end| end + 1);
        let kind = line.split_whitespace().next()?;
        let rest = if options_end > 0 { &line[options_end..] } else { line.strip_prefix(kind)? };
        let mut words = rest.split_whitespace();
        let (address, name) = (words.next()?, words.next()?);
        (kind == "deb" && name == suite && words.any(|word| word == "main")).then(|| address.to_owned())
    });
    one_line.or_else(|| {
        sources.split("\n\n").find_map(|stanza| {
            let field = |name: &str| {
                stanza.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().split_whitespace()
            };
            let fits =
                field("Suites:").any(|name| name == suite) && field("Components:").any(|name| name == "main");
            fits.then(|| field("URIs:").next().map(str::to_owned)).flatten()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_read_from_both_forms_of_sources() {
        let one = "# comment\ndeb [signed-by=/k arch=amd64] http://m.example/debian bookworm main contrib\n";
        assert_eq!(mirror_in(one, "bookworm").as_deref(), Some("http://m.example/debian"));
        let stanzas = "Types: deb\nURIs: http://s.example/sec\nSuites: bookworm-security\nComponents: main\n\n\
                       Types: deb\n# note\nURIs: http://m.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n";
        assert_eq!(mirror_in(stanzas, "bookworm").as_deref(), Some("http://m.example/debian"));
        assert_eq!(mirror_in(stanzas, "trixie"), None);
        assert_eq!(
            mirror_in("deb http://x.example/debian bookworm main", "bookworm").as_deref(),
            Some("http://x.example/debian")
        );
    }

    #[test]
    fn of_a_list_of_mirrors_the_first_is_taken() {
        let list = "# comment\n\nhttps://m.example/debian\tpriority:1\nhttps://n.example/debian\n";
        assert_eq!(first_of(list).as_deref(), Some("https://m.example/debian"));
        assert_eq!(first_of("# none\n"), None);
    }

    #[test]
    fn another_root_is_entered_in_a_mount_namespace_of_its_own() {
        let release = Release { root: Some("/roots/four".into()) };
        let launch = release.launch(Path::new("/dir"), "rabbitmqctl", &["status"]);
        assert_eq!(launch.program, Path::new("unshare"));
        assert!(launch.args.contains(&"/roots/four".into()) && launch.args.contains(&"status".into()));
    }
}
