//! The test cluster: a real Kubernetes control plane and one node on this machine, or a cluster that is there already.

mod certificates;
mod config;
pub(crate) mod network;
mod parts;
mod settings;

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::Flock;

use self::config::Paths;
pub(crate) use self::config::snapshotter;
use self::parts::Parts;
pub use self::settings::{Ports, Settings};
use crate::progress::{Progress, step};
use crate::site::Site;
use crate::{golang, leftovers, packages};

/// Names a kubeconfig of a cluster to use instead of one of our own.
pub const KUBECONFIG_VARIABLE: &str = "WARREN_KUBECONFIG";
/// The address at which pods of such a cluster reach this machine.
pub const HOST_VARIABLE: &str = "WARREN_HOST_ADDRESS";

/// How long a cluster of other code or of another checkout is left to who uses it.
const LONGEST_USE: Duration = Duration::from_secs(15 * 60);

/// A cluster that is up.
#[derive(Debug, Clone)]
pub struct Cluster {
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    helm: PathBuf,
    host_address: IpAddr,
    /// The folders of our own cluster; none for one that was there already.
    site: Option<Site>,
    /// Keeps others from taking the cluster down while this process uses it.
    _in_use: Option<Arc<Flock<File>>>,
}

impl Cluster {
    /// The cluster that tests use: the one that `WARREN_KUBECONFIG` names, or else our own, which is brought up if it
    /// is not up.
    pub async fn for_tests(progress: &dyn Progress) -> Result<Self> {
        Self::of(std::env::var_os(KUBECONFIG_VARIABLE).as_deref().map(Path::new), progress).await
    }

    /// The cluster of a kubeconfig, or else our own, which is brought up if it is not up.
    pub async fn of(kubeconfig: Option<&Path>, progress: &dyn Progress) -> Result<Self> {
        match kubeconfig {
            Some(file) => Self::attach(file),
            // Boxed, so that the futures of callers stay small.
            None => Box::pin(Self::up(progress)).await,
        }
    }

    /// Brings up our own cluster, or what of it does not run; quick when all of it runs. Clusters of other checkouts on
    /// this machine are taken down first, when nothing uses them any more: they would use the same bridge.
    ///
    /// Packages must be installed; see [`packages::missing`] and [`packages::install`].
    async fn up(progress: &dyn Progress) -> Result<Self> {
        let site = Site::current()?;
        // Without the lock, which another checkout may hold while it waits for this one's tests.
        if let Some(cluster) = Self::running(&site, progress).await? {
            return Ok(cluster);
        }
        let _lock = site.lock().await?;
        let missing = packages::missing();
        if !missing.is_empty() {
            bail!("these Debian packages are missing: {}", missing.join(" "));
        }
        leftovers::reap(&site).await?;
        build(&site, progress).await?;
        clear_others(&site, progress).await?;
        if let Some(cluster) = Self::running(&site, progress).await? {
            return Ok(cluster);
        }
        let (mut settings, is_new) = match Settings::load(&site) {
            Some(settings) => (settings, false),
            None => {
                if Settings::exists(&site) {
                    clear_when_unused(&site, "Taking down a cluster that other code made", progress).await?;
                }
                Site::current()?;
                network::refuse_other_nodes(&site)?;
                (Settings::choose(&site).await?, true)
            }
        };
        if let Err(error) = start(&site, &mut settings, progress).await {
            // Nobody has asked to keep what has not come up.
            if is_new && let Err(left) = leftovers::clear(&site).await {
                return Err(error.context(format!("what has been started does not go: {left:#}")));
            }
            return Err(error);
        }
        Self::own(&site, &settings, site.use_cluster()?)
    }

    /// Our own cluster, if all of it runs and is what this code would bring up.
    async fn running(site: &Site, progress: &dyn Progress) -> Result<Option<Self>> {
        // First, so that nobody takes it down after the look at it.
        let Ok(in_use) = site.use_cluster() else { return Ok(None) };
        let Some(settings) = Settings::load(site) else { return Ok(None) };
        let built = golang::programs(site).await?.iter().all(golang::Program::is_built);
        if !built || !Parts::new(site, &settings).are_healthy().await? {
            return Ok(None);
        }
        progress.begin("Cluster").done("runs already");
        Self::own(site, &settings, in_use).map(Some)
    }

    /// A cluster that is there already, such as kind's or minikube's. `kubectl` and `helm` come from `PATH`.
    fn attach(kubeconfig: &Path) -> Result<Self> {
        let kubeconfig = std::path::absolute(kubeconfig)?;
        if !kubeconfig.exists() {
            bail!("{} is not there", kubeconfig.display());
        }
        let host_address = match std::env::var(HOST_VARIABLE) {
            Ok(text) => text.parse().with_context(|| format!("{HOST_VARIABLE} is no IP address: {text}"))?,
            Err(_) => default_address()?,
        };
        Ok(Self {
            kubeconfig,
            kubectl: "kubectl".into(),
            helm: "helm".into(),
            host_address,
            site: None,
            _in_use: None,
        })
    }

    /// Takes down our own cluster, and all test brokers with it, whatever state it is in.
    pub async fn down(progress: &dyn Progress) -> Result<()> {
        let site = Site::current()?;
        let _lock = site.lock().await?;
        Box::pin(step(progress, "Taking down the cluster", leftovers::clear(&site))).await
    }

    /// Takes our own cluster down, unless somebody asked to keep it.
    pub async fn leave(&self, progress: &dyn Progress) -> Result<()> {
        if self.site.is_none() || self.is_kept() { Ok(()) } else { Self::down(progress).await }
    }

    /// Has our own cluster stay until [`Self::down`].
    pub fn keep(&self) -> Result<()> {
        let Some(mark) = self.kept() else { return Ok(()) };
        std::fs::write(&mark, "").with_context(|| format!("write {}", mark.display()))
    }

    /// Whether that was asked for, by this command or an earlier one.
    pub fn is_kept(&self) -> bool {
        self.kept().is_some_and(|mark| mark.exists())
    }

    fn kept(&self) -> Option<PathBuf> {
        self.site.as_ref().map(|site| site.run.join("kept"))
    }

    /// The kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The `kubectl` that fits the cluster.
    pub fn kubectl_path(&self) -> &Path {
        &self.kubectl
    }

    /// The `helm` to use.
    pub fn helm_path(&self) -> &Path {
        &self.helm
    }

    /// This machine, as pods reach it: where test brokers listen.
    pub fn host_address(&self) -> IpAddr {
        self.host_address
    }

    /// The folders of our own cluster; none for one that was there already.
    pub fn site(&self) -> Option<&Site> {
        self.site.as_ref()
    }

    fn own(site: &Site, settings: &Settings, in_use: Flock<File>) -> Result<Self> {
        Ok(Self {
            kubeconfig: site.state.join("kubeconfig"),
            kubectl: site.bin().join("kubectl"),
            helm: site.bin().join("helm"),
            host_address: settings.host_address().into(),
            site: Some(site.clone()),
            _in_use: Some(Arc::new(in_use)),
        })
    }
}

async fn build(site: &Site, progress: &dyn Progress) -> Result<()> {
    for program in golang::programs(site).await?.iter().filter(|program| !program.is_built()) {
        step(progress, program.title(), program.build()).await?;
    }
    golang::link_names(site)
}

async fn clear_others(site: &Site, progress: &dyn Progress) -> Result<()> {
    for other in site.others()? {
        leftovers::reap(&other).await?;
        if Settings::exists(&other) {
            let title = format!("Taking down the cluster of {}", other.state.display());
            clear_when_unused(&other, &title, progress).await?;
        }
    }
    Ok(())
}

/// Takes a cluster down, but first lets the tests or the demo that use it come to their end, within reason.
async fn clear_when_unused(site: &Site, title: &str, progress: &dyn Progress) -> Result<()> {
    let mut claim = site.claim_cluster();
    if claim.is_none() {
        let step = progress.begin(&format!("Waiting for what uses the cluster of {}", site.state.display()));
        let deadline = Instant::now() + LONGEST_USE;
        while claim.is_none() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_secs(1)).await;
            claim = site.claim_cluster();
        }
        step.done(if claim.is_none() { "waited long enough" } else { "" });
    }
    step(progress, title, leftovers::clear(site)).await
}

async fn start(site: &Site, settings: &mut Settings, progress: &dyn Progress) -> Result<()> {
    // Before the first thing is made, so that "down" knows of it.
    settings.save(site)?;
    network::set_up(settings).await?;
    settings.save(site)?;
    let parts = Parts::new(site, settings);
    parts.write_files()?;
    let api = step(progress, "API server and etcd", parts.api());
    let runtime = step(progress, "Container runtime", parts.runtime());
    tokio::try_join!(api, runtime)?;
    step(progress, "Controllers, scheduler, kubelet, Services and DNS", parts.workers()).await?;
    step(progress, "Node", parts.ready()).await?;
    parts::publish_kubeconfig(&Paths::of(site), &site.state.join("kubeconfig"))
}

/// The address of this machine in the network that its default route leads to. No packet is sent.
fn default_address() -> Result<IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("192.0.2.1:9").with_context(|| format!("no default route; set {HOST_VARIABLE}"))?;
    Ok(socket.local_addr()?.ip())
}
