//! Programs written in Go that the cluster runs: built once, and again only when what they are made of has changed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokio::process::Command;

use crate::command::{run, run_again, run_program};
use crate::site::{Site, digest, workspace};

/// The Kubernetes release, which `tests/cluster/node/go.mod` names too.
pub const KUBERNETES: &str = "1.36.3";
/// The Helm release.
pub const HELM: &str = "4.3.1";

/// Programs in the all-in-one binary, which are called by these names.
const NODE_PROGRAMS: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
];

/// A program and what it is made of.
#[derive(Debug)]
pub struct Program {
    title: &'static str,
    binary: PathBuf,
    key: String,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// A folder with a module.
    Folder { dir: PathBuf, flags: String },
    /// A released module.
    Release(String),
}

/// The programs that the cluster needs.
pub async fn programs(site: &Site) -> Result<[Program; 3]> {
    let go = go_version().await?;
    let minor = KUBERNETES.split('.').nth(1).unwrap_or_default();
    let version = "k8s.io/component-base/version";
    let flags = format!(
        "-s -w -X {version}.gitVersion=v{KUBERNETES} -X {version}.gitMajor=1 -X {version}.gitMinor={minor}"
    );
    let cluster = workspace().join("tests/cluster");
    let release = format!("helm.sh/helm/v4/cmd/helm@v{HELM}");
    let helm = Program {
        title: "Building Helm (once)",
        binary: site.bin().join("helm"),
        key: digest(format!("{release} {go}")),
        source: Source::Release(release),
    };
    Ok([
        folder(site, "Building Kubernetes (once; takes minutes)", &cluster.join("node"), &flags, &go)?,
        folder(site, "Building CoreDNS (once)", &cluster.join("dns"), "-s -w", &go)?,
        helm,
    ])
}

/// Makes the names of the Kubernetes programs, all of which are one file.
pub fn link_names(site: &Site) -> Result<()> {
    for program in NODE_PROGRAMS {
        let link = site.bin().join(program);
        if std::fs::read_link(&link).ok().as_deref() != Some(Path::new("node")) {
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink("node", &link).with_context(|| format!("link {}", link.display()))?;
        }
    }
    Ok(())
}

/// Builds a static program out of a folder of this checkout, such as `examples/orders`; Go's own cache makes it quick.
pub async fn program(folder: &str) -> Result<PathBuf> {
    let source = workspace().join(folder);
    let name = source.file_name().with_context(|| format!("{folder} has no name"))?;
    let binary = workspace().join("target/programs").join(name);
    let mut command = go();
    command
        .current_dir(&source)
        .args(["build", "-trimpath", "-ldflags", "-s -w", "-o"])
        .arg(&binary)
        .arg(".");
    run(&mut command).await.with_context(|| format!("build {folder}"))?;
    Ok(binary)
}

/// Says what the cluster's binaries are made of: a cluster of other binaries has to be brought up anew.
pub(crate) fn fingerprint(site: &Site) -> String {
    let key =
        |name: &str| std::fs::read_to_string(site.bin().join(format!("{name}.key"))).unwrap_or_default();
    digest(key("node") + &key("dns"))
}

impl Program {
    /// What to tell the user while it is built.
    pub fn title(&self) -> &str {
        self.title
    }

    /// Whether the binary is there and made of the same sources by the same compiler.
    pub fn is_built(&self) -> bool {
        self.binary.exists() && std::fs::read_to_string(self.stamp()).is_ok_and(|text| text == self.key)
    }

    /// Builds it.
    pub async fn build(&self) -> Result<()> {
        // A running program's file can't be written to, but it can be replaced.
        let _ = std::fs::remove_file(&self.binary);
        let mut go = go();
        match &self.source {
            Source::Folder { dir, flags } => {
                go.current_dir(dir)
                    .args(["build", "-trimpath", "-ldflags", flags, "-o"])
                    .arg(&self.binary)
                    .arg(".");
            }
            Source::Release(module) => {
                let dir = self.binary.parent().unwrap_or(&self.binary);
                go.env("GOBIN", dir).args(["install", "-trimpath", "-ldflags", "-s -w", module]);
            }
        }
        // Go does not fetch a module again that broke off; what is there already is not fetched twice.
        run_again(&mut go).await.with_context(|| format!("build {}", self.binary.display()))?;
        std::fs::write(self.stamp(), &self.key)?;
        Ok(())
    }

    fn stamp(&self) -> PathBuf {
        self.binary.with_extension("key")
    }
}

fn folder(site: &Site, title: &'static str, dir: &Path, flags: &str, go: &str) -> Result<Program> {
    let name = dir.file_name().context("a Go program's folder has a name")?;
    let mut inputs = format!("{flags} {go}");
    for file in ["main.go", "go.mod", "go.sum"] {
        let path = dir.join(file);
        match std::fs::read_to_string(&path) {
            Ok(text) => inputs += &text,
            // A module without dependencies has no sums.
            Err(_) if file == "go.sum" => {}
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
    }
    let source = Source::Folder { dir: dir.to_path_buf(), flags: flags.to_owned() };
    Ok(Program { title, binary: site.bin().join(name), key: digest(inputs), source })
}

async fn go_version() -> Result<String> {
    run_program("go", ["env", "GOVERSION"]).await.context("Go 1.26 or later is needed: https://go.dev/dl")
}

fn go() -> Command {
    let mut command = Command::new("go");
    command.env("CGO_ENABLED", "0").env("GOWORK", "off");
    command
}
