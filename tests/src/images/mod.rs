//! Images without a registry: built by buildah on this machine and handed to the cluster's container runtime.

mod cargo;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use self::cargo::static_binaries_noting;
pub use self::cargo::{static_binaries, static_binary};
use crate::cluster::{Cluster, snapshotter};
use crate::command::run;
use crate::progress::{Progress, step_noting};
use crate::site::{Site, digest, workspace};

/// The operator's image.
pub const OPERATOR: &str = "localhost/warren-operator:dev";
/// The sidecar's image.
pub const SIDECAR: &str = "localhost/warren-sidecar:dev";
/// What each of our images may weigh, in bytes.
pub const BUDGET: u64 = 15 * 1024 * 1024;
/// The image that holds a pod's namespaces.
pub(crate) const PAUSE: &str = "localhost/warren-pause:dev";
/// This machine's roots of trust, which go into each image.
pub const CA_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// An image that the cluster has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Name and tag.
    pub reference: String,
    /// All files in it, in bytes.
    pub size: u64,
    /// False when the cluster had the very same image already.
    pub changed: bool,
}

/// Builds the operator and the sidecar as static release binaries and gives their images to the cluster.
pub async fn warren(cluster: &Cluster, progress: &dyn Progress) -> Result<Vec<Image>> {
    let binaries = step_noting(progress, "Static release binaries", async |note| {
        Ok((static_binaries_noting(&["warren-operator", "warren-sidecar"], note).await?, String::new()))
    })
    .await?;
    let mut images = Vec::new();
    for (reference, binary) in [OPERATOR, SIDECAR].into_iter().zip(&binaries) {
        let image = step_noting(progress, &format!("Image {reference}"), async |_| {
            let image = program(cluster, reference, binary).await?;
            let mebibytes = image.size as f64 / (1024.0 * 1024.0);
            let over = if image.size > BUDGET { ", OVER THE BUDGET" } else { "" };
            let unchanged = if image.changed { "" } else { ", unchanged" };
            let text = format!("{mebibytes:.1} MiB of {}{over}{unchanged}", BUDGET / (1024 * 1024));
            Ok((image, text))
        })
        .await?;
        images.push(image);
    }
    Ok(images)
}

/// Gives the cluster an image that holds one static program, run without arguments by a user that is not root.
pub async fn program(cluster: &Cluster, reference: &str, binary: &Path) -> Result<Image> {
    let files = [("program", binary), ("ca-certificates.crt", Path::new(CA_ROOTS))];
    build(cluster, reference, &containerfile("program"), &files).await
}

/// Gives the cluster an image that `containerfile` makes of `files`, which it copies by the names given here. It may
/// copy only: there is no network in which it could run anything.
pub async fn build(
    cluster: &Cluster,
    reference: &str,
    containerfile: &Path,
    files: &[(&str, &Path)],
) -> Result<Image> {
    match cluster.site() {
        Some(site) => build_into(site, Target::Runtime, reference, containerfile, files).await,
        None => {
            let site = Site::current()?;
            build_into(&site, Target::of(cluster).await?, reference, containerfile, files).await
        }
    }
}

/// The image that holds a pod's namespaces: the runtime itself needs it.
pub(crate) async fn pause(site: &Site) -> Result<()> {
    let files = [("catatonit", Path::new("/usr/bin/catatonit"))];
    build_into(site, Target::Runtime, PAUSE, &containerfile("pause"), &files).await?;
    Ok(())
}

fn containerfile(name: &str) -> PathBuf {
    workspace().join(format!("tests/cluster/images/{name}.Containerfile"))
}

/// Who takes the image.
enum Target {
    /// Our own containerd.
    Runtime,
    /// A kind cluster of this name.
    Kind(String),
    /// A minikube profile of this name.
    Minikube(String),
}

impl Target {
    async fn of(cluster: &Cluster) -> Result<Self> {
        match cluster.kubectl(&["config", "current-context"]).await?.trim() {
            name if name.starts_with("kind-") => Ok(Self::Kind(name.trim_start_matches("kind-").to_owned())),
            name if name.starts_with("minikube") => Ok(Self::Minikube(name.to_owned())),
            name => bail!("images can be given to clusters of kind and minikube only, not to {name}"),
        }
    }

    /// Text that tells one target from another in the notes of what was given to whom.
    fn key(&self) -> String {
        match self {
            Self::Runtime => "runtime".to_owned(),
            Self::Kind(name) => format!("kind {name}"),
            Self::Minikube(name) => format!("minikube {name}"),
        }
    }

    async fn import(&self, site: &Site, archive: &Path) -> Result<()> {
        let mut command = match self {
            Self::Runtime => {
                let mut command = Command::new("ctr");
                command
                    .arg("-a")
                    .arg(site.run.join("containerd.sock"))
                    .args(["-n", "k8s.io", "images", "import"])
                    .args(["--snapshotter", snapshotter(&site.state)?]);
                command
            }
            Self::Kind(name) => {
                let mut command = Command::new("kind");
                command.args(["load", "image-archive", "--name", name]);
                command
            }
            Self::Minikube(name) => {
                let mut command = Command::new("minikube");
                command.args(["-p", name, "image", "load"]);
                command
            }
        };
        run(command.arg(archive))
            .await
            .with_context(|| format!("give {} to the cluster", archive.display()))?;
        Ok(())
    }
}

async fn build_into(
    site: &Site,
    target: Target,
    reference: &str,
    containerfile: &Path,
    files: &[(&str, &Path)],
) -> Result<Image> {
    let mut hash = digest(target.key() + reference)
        + &digest(std::fs::read(containerfile).with_context(|| format!("read {}", containerfile.display()))?);
    let mut size = 0;
    for (name, path) in files {
        let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        size += bytes.len() as u64;
        hash = hash + name + &digest(bytes);
    }
    let key = digest(hash);
    let dir = site.run.join("images");
    let stamp = dir.join(format!("{}.key", &digest(target.key() + reference)[..16]));
    if std::fs::read_to_string(&stamp).is_ok_and(|text| text == key) {
        return Ok(Image { reference: reference.to_owned(), size, changed: false });
    }
    std::fs::create_dir_all(&dir)?;
    let context = tempfile::tempdir_in(&dir)?;
    for (name, path) in files {
        let copy = context.path().join(name);
        std::fs::copy(path, &copy).with_context(|| format!("copy {}", path.display()))?;
    }
    let archive = context.path().join("image.tar");
    let tag = format!("oci-archive:{}:{reference}", archive.display());
    let mut bud = buildah(context.path());
    // Unlike a named image, an image id that nobody else builds is not taken away by a second build at the same time.
    let id = context.path().join("id");
    bud.args(["build", "--quiet", "--isolation", "chroot", "--layers=false", "--timestamp", "0", "--file"]);
    bud.arg(containerfile).arg("--iidfile").arg(&id).arg(context.path());
    run(&mut bud).await?;
    let id = std::fs::read_to_string(&id).context("read the image's id")?;
    run(buildah(context.path()).args(["push", "--quiet", id.trim(), &tag])).await?;
    target.import(site, &archive).await?;
    std::fs::write(&stamp, key)?;
    Ok(Image { reference: reference.to_owned(), size, changed: true })
}

/// Buildah with a store of its own for each build, which goes with the build's folder.
fn buildah(scratch: &Path) -> Command {
    let mut command = Command::new("buildah");
    command.env("BUILDAH_ISOLATION", "chroot").args(["--storage-driver", "vfs"]);
    command.arg("--root").arg(scratch.join(".storage")).arg("--runroot").arg(scratch.join(".run"));
    command
}
