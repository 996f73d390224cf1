//! What an administrator does to a broker.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::Command;
use tokio::sync::Mutex;

use super::config::{USER, binary};
use super::{Broker, Version};
use crate::command::{run, run_with_input};
use crate::way::Way;

/// How often a call to the node is tried again that could not connect.
const CONNECT_TRIES: u32 = 10;
const CONNECT_PAUSE: Duration = Duration::from_millis(200);

/// What a broker runs out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    /// Memory.
    Memory,
    /// Disk.
    Disk,
}

/// A vhost of one test, on a broker that others use too.
#[derive(Debug, Clone)]
pub struct Vhost {
    /// The broker.
    pub broker: Arc<Broker>,
    /// The vhost's name.
    pub name: String,
}

impl Vhost {
    /// A new vhost on the broker that all tests of this process share.
    pub async fn new(name: &str) -> Result<Self> {
        Self::on(Version::V3_10, name).await
    }

    /// The same on the shared broker of a release.
    pub async fn on(version: Version, name: &str) -> Result<Self> {
        let broker = Broker::shared_of(version).await?;
        broker.vhost(name).await?;
        Ok(Self { broker, name: name.to_owned() })
    }

    /// The URI for programs on this machine.
    pub fn uri(&self) -> String {
        self.broker.uri(&self.name)
    }

    /// A way to the broker, and the URI that takes it.
    pub async fn by_a_way(&self) -> Result<(Way, String)> {
        let port = self.broker.ports().amqp;
        let way = Way::to(([127, 0, 0, 1], port).into()).await?;
        let uri = self.uri().replace(&format!(":{port}/"), &format!(":{}/", way.address().port()));
        Ok((way, uri))
    }
}

impl Broker {
    /// Makes a vhost on which [`USER`] has all rights; one that is there is emptied first.
    pub async fn vhost(&self, name: &str) -> Result<()> {
        let delete = self.delete_vhost(name).await;
        let vhost = binary(name);
        let made = self.eval(&format!("rabbit_vhost:add({vhost}, <<\"warren\">>)")).await?;
        if !made.contains("ok") {
            bail!("add vhost {name}: {made} (before: {delete:?})");
        }
        self.permissions(USER, name, ".*", ".*", ".*").await
    }

    /// Removes a vhost with all that is in it. One that is not there is no error.
    pub async fn delete_vhost(&self, name: &str) -> Result<()> {
        let vhost = binary(name);
        self.eval(&format!("catch rabbit_vhost:delete({vhost}, <<\"warren\">>)")).await?;
        Ok(())
    }

    /// Makes a user, or gives one that is there another password.
    pub async fn user(&self, name: &str, password: &str) -> Result<()> {
        let (user, secret) = (binary(name), binary(password));
        let script = format!(
            "case rabbit_auth_backend_internal:exists({user}) of \
             true -> rabbit_auth_backend_internal:change_password({user}, {secret}, <<\"warren\">>); \
             false -> rabbit_auth_backend_internal:add_user({user}, {secret}, <<\"warren\">>) end"
        );
        self.expect_ok(&script).await.with_context(|| format!("add user {name}"))
    }

    /// Removes a user.
    pub async fn delete_user(&self, name: &str) -> Result<()> {
        self.rabbitmqctl(&["delete_user", name]).await.map(drop)
    }

    /// Gives a user rights on a vhost: three regular expressions.
    pub async fn permissions(
        &self,
        user: &str,
        vhost: &str,
        configure: &str,
        write: &str,
        read: &str,
    ) -> Result<()> {
        let words: Vec<_> = [user, vhost, configure, write, read].into_iter().map(binary).collect();
        let script =
            format!("rabbit_auth_backend_internal:set_permissions({}, <<\"warren\">>)", words.join(", "));
        self.expect_ok(&script).await.with_context(|| format!("set permissions of {user} on {vhost}"))
    }

    /// Stops the broker inside its Erlang node, which goes on.
    pub async fn stop_app(&self) -> Result<()> {
        self.rabbitmqctl(&["stop_app"]).await.map(drop)
    }

    /// Starts the broker inside its Erlang node.
    pub async fn start_app(&self) -> Result<()> {
        self.rabbitmqctl(&["start_app"]).await.map(drop)
    }

    /// Makes the broker believe that it runs out of something: it stops reading from connections that publish.
    pub async fn set_alarm(&self, alarm: Alarm) -> Result<()> {
        match alarm {
            Alarm::Memory => self.rabbitmqctl(&["set_vm_memory_high_watermark", "0"]).await.map(drop),
            Alarm::Disk => self.rabbitmqctl(&["set_disk_free_limit", "999999GB"]).await.map(drop),
        }
    }

    /// Ends [`Self::set_alarm`].
    pub async fn clear_alarm(&self, alarm: Alarm) -> Result<()> {
        match alarm {
            Alarm::Memory => self.rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]).await.map(drop),
            Alarm::Disk => self.rabbitmqctl(&["set_disk_free_limit", "50MB"]).await.map(drop),
        }
    }

    /// Runs `rabbitmqctl` and gives what it printed. It takes a second or more, like each start of Erlang.
    pub async fn rabbitmqctl(&self, args: &[&str]) -> Result<String> {
        let launch = self.release.launch(&self.dir, "rabbitmqctl", &[&["-q"], args].concat());
        run(Command::new(launch.program).args(launch.args).envs(self.environment())).await
    }

    /// Evaluates an Erlang expression in the node and gives the value as text. It takes milliseconds.
    pub async fn eval(&self, expression: &str) -> Result<String> {
        // Two that start in the same instant choose the same "random" node name, and the node refuses the second.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
        let _turn = ONE_AT_A_TIME.lock().await;
        let cookie = std::fs::read_to_string(self.dir.join(".erlang.cookie"))?;
        let address = format!("127.0.0.1:{}", self.ports.distribution);
        let call = async || {
            let mut command = Command::new("erl_call");
            command.args(["-address", &address, "-c", cookie.trim(), "-r", "-timeout", "60", "-e"]);
            run_with_input(&mut command, &format!("{expression}.\n")).await
        };
        // A caller whose random name is still known from an earlier one is refused, before anything is evaluated.
        for _ in 0..CONNECT_TRIES {
            match call().await {
                Err(error) if format!("{error:#}").contains("failed to connect") => {
                    tokio::time::sleep(CONNECT_PAUSE).await;
                }
                result => return result,
            }
        }
        call().await
    }

    /// Its release.
    pub fn version(&self) -> Version {
        self.options.version
    }

    async fn expect_ok(&self, expression: &str) -> Result<()> {
        let answer = self.eval(expression).await?;
        if answer.contains("{ok, ok}") {
            return Ok(());
        }
        bail!("the broker says {answer}")
    }
}
