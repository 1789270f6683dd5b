//! A network device: read from the kernel's message about it, and made again.

use super::*;

/// IFLA_BRPORT_STATE, BR_STATE_FORWARDING, IFLA_BR_STP_STATE
const STATE: u16 = 1;
const FORWARDING: u8 = 3;
const STP_STATE: u16 = 5;

/// IFF_* flags, owner and group of a tun or tap device.
fn tun_of(data: &[u8]) -> (u32, i64, i64) {
    let (mut flags, mut owner, mut group) = (0, -1, -1);
    for (kind, value) in attributes(data, 0) {
        let on = value.first().is_some_and(|b| *b != 0);
        // IFLA_TUN_*: owner, group, type, packet information, virtio header, persistent, many queues.
        match kind {
            1 => owner = i64::from(word(value)),
            2 => group = i64::from(word(value)),
            3 => flags |= u32::from(value.first().copied().unwrap_or(1)),
            4 if !on => flags |= tun::NO_PI,
            5 if on => flags |= tun::VNET_HDR,
            6 if on => flags |= tun::PERSIST,
            7 if on => flags |= tun::MULTI_QUEUE,
            _ => {}
        }
    }
    (flags, owner, group)
}

/// The IFF_* flags of the tun or tap device of this name in the namespace of the calling thread, if the kernel tells.
pub fn tun_flags(wanted: &str) -> Sys<Option<u32>> {
    for message in Netlink::route()?.dump(GETLINK, &[0; 16])? {
        let (mut name, mut found) = (String::new(), None);
        for (kind, value) in attributes(&message, 16) {
            match kind {
                IFNAME => name = text(value),
                LINKINFO => found = Some(attributes(value, 0)),
                _ => {}
            }
        }
        let info = found.unwrap_or_default();
        let of = |kind: u16| info.iter().find(|(k, _)| *k == kind).map(|(_, v)| *v);
        let is_tun = of(INFO_KIND).is_some_and(|kind| text(kind) == "tun");
        if name == wanted
            && let Some(data) = of(INFO_DATA).filter(|_| is_tun)
        {
            return Ok(Some(tun_of(data).0));
        }
    }
    Ok(None)
}

impl Link {
    pub(super) fn read(
        message: &[u8],
        numbers: &BTreeMap<i32, u32>,
        label: &str,
        out: &mut Vec<Blocker>,
    ) -> Option<Link> {
        let mut link = Link {
            index: word(message.get(4..)?) as i32,
            flags: word(message.get(8..)?),
            ..Link::default()
        };
        let (mut below, mut elsewhere) = (0, None);
        let mut program = false;
        let mut data: &[u8] = &[];
        for (kind, value) in attributes(message, 16) {
            match kind {
                ADDRESS => link.address = Bytes(value.to_vec()),
                IFNAME => link.name = text(value),
                MTU => link.mtu = word(value),
                LINK => below = word(value) as i32,
                LINK_NETNSID => elsewhere = Some(word(value) as i32),
                MASTER => link.master = word(value) as i32,
                TXQLEN => link.queue = word(value),
                TX_QUEUES => link.queues.0 = word(value),
                RX_QUEUES => link.queues.1 = word(value),
                GROUP => link.group = word(value),
                kind if SEGMENTS.contains(&kind) => link.segments.push((kind, word(value))),
                IFALIAS => link.alias = Bytes(value.to_vec()),
                PROP_LIST => {
                    let names = attributes(value, 0).into_iter().filter(|(k, _)| *k == ALT_IFNAME);
                    link.names.extend(names.map(|(_, v)| Bytes(v.to_vec())));
                }
                // IFLA_XDP_ATTACHED
                XDP => {
                    program = attributes(value, 0)
                        .iter()
                        .any(|(k, v)| *k == 2 && v.first().is_some_and(|b| *b != 0))
                }
                LINKINFO => {
                    for (kind, value) in attributes(value, 0) {
                        match kind {
                            INFO_KIND => link.kind = text(value),
                            INFO_DATA => data = value,
                            INFO_SLAVE_DATA => {
                                link.part = filtered(value, PART);
                                link.forwarding = attributes(value, 0).contains(&(STATE, &[FORWARDING]));
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        let at = || Blocker::at(format!("network device {}", link.name), label);
        let remedy = "remove the device";
        if program {
            out.push(
                at().why("an eBPF program (XDP) is attached to it")
                    .remedy("detach it"),
            );
        }
        if comes_by_itself(&link) {
            if link.index != 1 && link.kind.is_empty() {
                out.push(
                    at().why("it is a device of the machine, which cannot be made again")
                        .remedy("move it to another network namespace"),
                );
            }
            return Some(link);
        }
        let Some((_, kept)) = KINDS.iter().find(|(kind, _)| *kind == link.kind) else {
            out.push(
                at().why(format!("devices of kind {} are not carried", link.kind))
                    .remedy(remedy),
            );
            return Some(link);
        };
        link.data = filtered(data, kept);
        // The addresses from which a device takes what it gets are told by themselves, and set with the order to do so.
        const SOURCES: u16 = 5;
        const ORDER: u16 = 3;
        const SET: u32 = 3;
        let told = |(kind, _): &(u16, &[u8])| *kind == SOURCES;
        if link.kind.starts_with("macv") && attributes(data, 0).iter().any(told) {
            put(&mut link.data.0, ORDER, &SET.to_ne_bytes());
        }
        if link.kind == "veth" {
            let number = match elsewhere {
                None => Some(u32::MAX),
                Some(id) => numbers.get(&id).copied(),
            };
            match number {
                Some(number) => link.peer = Some((number, below)),
                None => out.push(
                    at().why("its other end lies in a network namespace outside the checkpoint")
                        .remedy("take it down, or checkpoint the processes of that namespace too"),
                ),
            }
        } else if elsewhere.is_some() {
            out.push(
                at().why("it lies upon a device of another network namespace")
                    .remedy(remedy),
            );
        } else {
            link.lower = below;
        }
        if link.kind == "tun" {
            link.tun = Some(tun_of(data));
        }
        Some(link)
    }

    /// What makes it, as far as that is to be said at once.
    pub(super) fn make(&self, netlink: &mut Netlink, peer: Option<(&Link, Option<i32>)>) -> Sys<()> {
        let mut body = self.head(0, 0);
        self.describe(&mut body);
        if self.lower != 0 {
            put(&mut body, LINK, &self.lower.to_ne_bytes());
        }
        nest(&mut body, LINKINFO, |m| {
            put(m, INFO_KIND, self.kind.as_bytes());
            match peer {
                Some((peer, netns)) => nest(m, INFO_DATA, |m| {
                    nest(m, VETH_PEER, |m| {
                        m.extend(peer.head(0, 0));
                        peer.describe(m);
                        if let Some(fd) = netns {
                            put(m, NET_NS_FD, &fd.to_ne_bytes());
                        }
                    })
                }),
                // A bridge refuses what the kernel was built without, even if it is switched off.
                None if !self.data.0.is_empty() && self.kind != "bridge" => {
                    nest(m, INFO_DATA, |m| m.extend(&self.data.0))
                }
                None => {}
            }
        });
        netlink.request(NEWLINK, CREATE | EXCL, &body)?;
        if self.kind != "bridge" {
            return Ok(());
        }
        let answers = netlink.ask(GETLINK, &self.head(0, 0))?;
        let info = answers.first().and_then(|a| {
            let (_, info) = attributes(a, 16).into_iter().find(|(k, _)| *k == LINKINFO)?;
            attributes(info, 0).into_iter().find(|(k, _)| *k == INFO_DATA)
        });
        let now = info.map_or_else(Vec::new, |(_, data)| attributes(data, 0));
        for wanted in attributes(&self.data.0, 0)
            .into_iter()
            .filter(|a| a.0 != STP_STATE && !now.contains(a))
        {
            self.tell(netlink, wanted)?;
        }
        Ok(())
    }

    /// Whether it is a bridge that takes part in a spanning tree.
    pub(super) fn has_tree(&self) -> bool {
        let on = |a: &(u16, &[u8])| a.0 == STP_STATE && word(a.1) != 0;
        self.kind == "bridge" && attributes(&self.data.0, 0).iter().any(on)
    }

    /// Has a bridge take part in a spanning tree, if it did.
    pub(super) fn grow_tree(&self, netlink: &mut Netlink) -> Sys<()> {
        match attributes(&self.data.0, 0).into_iter().find(|a| a.0 == STP_STATE) {
            Some(wanted) if self.has_tree() => self.tell(netlink, wanted),
            _ => Ok(()),
        }
    }

    /// Whether the port of a bridge passes on what arrives by now.
    pub(super) fn forwards_now(&self, netlink: &mut Netlink) -> Sys<bool> {
        let answers = netlink.ask(GETLINK, &self.head(0, 0))?;
        let link = answers
            .first()
            .and_then(|m| Link::read(m, &BTreeMap::new(), "", &mut Vec::new()));
        Ok(link.is_some_and(|l| l.forwarding))
    }

    /// Sets one attribute of its kind.
    fn tell(&self, netlink: &mut Netlink, wanted: (u16, &[u8])) -> Sys<()> {
        let mut body = self.head(0, 0);
        nest(&mut body, LINKINFO, |m| {
            put(m, INFO_KIND, self.kind.as_bytes());
            nest(m, INFO_DATA, |m| put(m, wanted.0, wanted.1));
        });
        netlink.request(NEWLINK, 0, &body).map(drop)
    }

    /// A tun device, for good at first: whoever holds its descriptor attaches to it later, and says otherwise.
    pub(super) fn make_tun(&self) -> Sys<()> {
        let (flags, owner, group) = self.tun.unwrap_or((1, -1, -1));
        let tun = tun::open()?;
        tun::attach(tun.as_fd(), &self.name, flags, Some(self.index))?;
        tun::set(tun.as_fd(), flags | tun::PERSIST, owner, group)
    }

    fn describe(&self, body: &mut Vec<u8>) {
        put(body, IFNAME, &[self.name.as_bytes(), b"\0"].concat());
        if !self.address.0.is_empty() {
            put(body, ADDRESS, &self.address.0);
        }
        put(body, MTU, &self.mtu.to_ne_bytes());
        put(body, TXQLEN, &self.queue.to_ne_bytes());
        for (kind, count) in [(TX_QUEUES, self.queues.0), (RX_QUEUES, self.queues.1)] {
            if count != 0 {
                put(body, kind, &count.to_ne_bytes());
            }
        }
    }

    /// struct ifinfomsg.
    pub(super) fn head(&self, flags: u32, change: u32) -> Vec<u8> {
        let mut out = vec![0; 4];
        for n in [self.index as u32, flags, change] {
            out.extend(n.to_ne_bytes());
        }
        out
    }

    /// What can be said once all devices are there: what it is part of, names, and at last that it is up.
    pub(super) fn settle(&self, netlink: &mut Netlink) -> Sys<()> {
        let mut body = self.head(0, 0);
        if self.tun.is_some_and(|(f, ..)| f & tun::TAP != 0) {
            put(&mut body, ADDRESS, &self.address.0);
        }
        if self.kind == "tun" || comes_by_itself(self) {
            put(&mut body, MTU, &self.mtu.to_ne_bytes());
            put(&mut body, TXQLEN, &self.queue.to_ne_bytes());
        }
        put(&mut body, GROUP, &self.group.to_ne_bytes());
        if !self.alias.0.is_empty() {
            put(&mut body, IFALIAS, &self.alias.0);
        }
        netlink.request(SETLINK, 0, &body)?;
        if self.master != 0 {
            let mut body = self.head(0, 0);
            put(&mut body, MASTER, &self.master.to_ne_bytes());
            netlink.request(SETLINK, 0, &body)?;
            if !self.part.0.is_empty() {
                let mut body = self.head(0, 0);
                nest(&mut body, LINKINFO, |m| {
                    put(m, INFO_SLAVE_KIND, b"bridge\0");
                    nest(m, INFO_SLAVE_DATA, |m| m.extend(&self.part.0));
                });
                netlink.request(NEWLINK, 0, &body)?;
            }
        }
        if !self.segments.is_empty() {
            let answers = netlink.ask(GETLINK, &self.head(0, 0))?;
            let now = answers.first().map_or_else(Vec::new, |a| attributes(a, 16));
            for (kind, value) in &self.segments {
                let value = value.to_ne_bytes();
                if now.iter().any(|(k, v)| k == kind && **v != value) {
                    let mut body = self.head(0, 0);
                    put(&mut body, *kind, &value);
                    netlink.request(SETLINK, 0, &body)?;
                }
            }
        }
        for name in &self.names {
            let mut body = self.head(0, 0);
            nest(&mut body, PROP_LIST, |m| put(m, ALT_IFNAME, &name.0));
            netlink.request(NEWLINKPROP, CREATE | EXCL | APPEND, &body)?;
        }
        Ok(())
    }
}
