use std::error::Error;
use std::net::IpAddr;

use ipnet::IpNet;
use routes::netlink::{self, Netlink, Route};
use tokio::runtime::Builder;

use crate::{During, Host, LabError};

impl Host {
    /// Runs `work` with a connection to this host's rtnetlink.
    pub fn network<T, W>(&self, what: &str, work: W) -> Result<T, LabError>
    where
        T: Send + 'static,
        W: AsyncFnOnce(&Netlink) -> Result<T, netlink::Error> + Send + 'static,
    {
        self.run(move || -> Result<T, Box<dyn Error + Send + Sync>> {
            let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
            runtime.block_on(async {
                let netlink = Netlink::new()?;
                Ok(work(&netlink).await?)
            })
        })?
        .during(|| format!("{what} on host `{}`", self.name()))
    }

    /// Brings a device up.
    pub fn up(&self, device: &str) -> Result<(), LabError> {
        let name = device.to_owned();
        self.network(&format!("bring {device} up"), async move |netlink| {
            let index = netlink.link_index(&name).await?;
            netlink.set_up(index).await
        })
    }

    pub fn add_address(&self, device: &str, address: IpNet) -> Result<(), LabError> {
        let name = device.to_owned();
        self.network(&format!("give {device} the address {address}"), async move |netlink| {
            let index = netlink.link_index(&name).await?;
            netlink.add_address(index, address).await
        })
    }

    /// In bytes.
    pub fn set_mtu(&self, device: &str, mtu: u32) -> Result<(), LabError> {
        let name = device.to_owned();
        self.network(&format!("set the MTU of {device}"), async move |netlink| {
            let index = netlink.link_index(&name).await?;
            netlink.set_mtu(index, mtu).await
        })
    }

    /// Adds a route by way of a neighbour.
    pub fn add_route(&self, prefix: IpNet, via: IpAddr) -> Result<(), LabError> {
        self.network(&format!("route {prefix} via {via}"), async move |netlink| {
            netlink.add_route(&Route { via: Some(via), ..Route::new(prefix) }).await
        })
    }

    /// Adds a route into a device, whose far end needs no address.
    pub fn add_device_route(&self, prefix: IpNet, device: &str) -> Result<(), LabError> {
        let name = device.to_owned();
        self.network(&format!("route {prefix} into {device}"), async move |netlink| {
            let index = netlink.link_index(&name).await?;
            netlink.add_route(&Route { device: Some(index), ..Route::new(prefix) }).await
        })
    }
}
