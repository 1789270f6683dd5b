//! One device of freeze's own network namespace: a tun device of the set, or the outer end of a pair (veth) whose inner
//! end is in a namespace of the set.

use super::*;

/// How long a device of programs that have been ended may take to go.
const PATIENCE: Duration = Duration::from_secs(3);

/// The outer end of a pair: what it had, and the name of what it was part of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outer {
    pub device: Record,
    pub master: String,
}

/// Reads the outer end with this number; `label` says where the inner end is, and what speaks against it goes to `out`.
pub(super) fn outer(index: i32, label: &str, out: &mut Vec<Blocker>) -> Result<Outer> {
    let mut work = || -> Sys<Outer> {
        let (mut device, all) = read(|l| l.index == index)?;
        let mut netlink = Netlink::route()?;
        let link = &device.links[0];
        let master = all.iter().find(|l| l.index == link.master);
        let master = master.map_or_else(String::new, |l| l.name.clone());
        let own = format!("/{}/", link.name);
        device.settings = settings();
        device.settings.retain(|(path, _)| path.contains(&own));
        device.neighbours = neighbours(&mut netlink, &device.links)?;
        device.neighbours.retain(|n| is_of(&n.0, index));
        device.disciplines = traffic::read_of(&mut netlink, &device.links, label, out)?;
        Ok(Outer { device, master })
    };
    work().on("netlink", || {
        format!("the outer end of a network device, {label}")
    })
}

impl Outer {
    /// Waits for its name, which programs that were ended leave a moment later; adds that it is taken by something else.
    pub(super) fn await_name(&self, out: &mut Vec<Blocker>) {
        let began = Instant::now();
        let Some(link) = self.device.links.first() else {
            return;
        };
        let there = || read(|l| l.name == link.name).is_ok();
        while there() {
            if began.elapsed() > PATIENCE {
                out.push(
                    Blocker::at(format!("network device {}", link.name), "the outer end of a pair")
                        .why("there is a device of this name")
                        .remedy("remove or rename that one"),
                );
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Makes the pair, from the namespace of its inner end; `own` is freeze's.
    pub(super) fn make_with(&self, inner: &Link, netlink: &mut Netlink, own: i32) -> Sys<()> {
        let mut outer = self.device.links.first().ok_or(Errno::ENODEV)?.clone();
        loop {
            match inner.make(netlink, Some((&outer, Some(own)))) {
                // Its number is taken: any will do.
                Err(Errno::EBUSY) if outer.index != 0 => outer.index = 0,
                done => return done,
            }
        }
    }

    /// Gives it what it had.
    pub(super) fn settle(&self) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let name = self.device.links.first().map_or("", |l| &l.name);
        let mut work = || -> Sys<()> {
            let (now, all) = read(|l| l.name == name)?;
            let mut netlink = Netlink::route()?;
            let device = renumbered(&self.device, now.links[0].index);
            let mut link = device.links[0].clone();
            link.master = 0;
            if !self.master.is_empty() {
                match all.iter().find(|l| l.name == self.master) {
                    Some(master) => link.master = master.index,
                    None => warnings.push(format!(
                        "device {name}: there is no {} any more that it could be part of",
                        self.master
                    )),
                }
            }
            apply_settings(&device.settings);
            furnish(&link, &device, &mut netlink, &mut warnings)?;
            for neighbour in &device.neighbours {
                netlink.request(NEWNEIGH, CREATE, &neighbour.0)?;
            }
            traffic::restore(&mut netlink, &device.disciplines)?;
            apply_settings(&device.settings);
            Ok(())
        };
        work().on("netlink", || format!("network device {name}"))?;
        Ok(warnings)
    }
}

/// What a device had, for one with another number.
fn renumbered(record: &Record, index: i32) -> Record {
    let mut out = record.clone();
    let number = index.to_ne_bytes();
    for link in &mut out.links {
        link.index = index;
    }
    let messages = out.addresses.iter_mut().chain(&mut out.neighbours);
    let disciplines = out.disciplines.iter_mut().map(|d| &mut d.message);
    for message in messages.chain(disciplines) {
        if let Some(place) = message.0.get_mut(4..8) {
            place.copy_from_slice(&number);
        }
    }
    for route in &mut out.routes {
        let mut kept = route.0.get(..12).unwrap_or_default().to_vec();
        for (kind, value) in attributes(&route.0, 12) {
            put(&mut kept, kind, if kind == OIF { &number } else { value });
        }
        *route = Bytes(kept);
    }
    out
}

const OIF: u16 = 4;

fn is_named(message: &[u8], name: &str) -> bool {
    attributes(message, 16)
        .iter()
        .any(|(k, v)| *k == IFNAME && text(v) == name)
}

/// Reads one device of freeze's own namespace, with its addresses and routes.
pub fn device(name: &str) -> Result<Record> {
    read(|link| link.name == name)
        .map(|(record, _)| record)
        .on("netlink", || format!("network device {name}"))
}

/// The first device that is `wanted`, and all devices.
fn read(wanted: impl Fn(&Link) -> bool) -> Sys<(Record, Vec<Link>)> {
    let mut netlink = Netlink::route()?;
    let mut record = Record::default();
    let messages = netlink.dump(GETLINK, &[0; 16])?;
    let links = messages
        .iter()
        .filter_map(|m| Link::read(m, &BTreeMap::new(), "", &mut Vec::new()));
    let links: Vec<Link> = links.collect();
    let link = links.iter().find(|l| wanted(l)).ok_or(Errno::ENODEV)?;
    record.links.push(link.clone());
    let addresses = netlink.dump(GETADDR, &[0; 8])?.into_iter().map(Bytes);
    record.addresses = addresses.filter(|a| is_of(&a.0, link.index)).collect();
    record.routes = routes(&mut netlink)?;
    record.routes.retain(|r| leaves_by(&r.0, link.index));
    Ok((record, links))
}

/// Whether an address is that of a device.
fn is_of(address: &[u8], index: i32) -> bool {
    address.get(4..).map_or(0, word) as i32 == index
}

/// Whether a route leads through a device.
fn leaves_by(route: &[u8], index: i32) -> bool {
    attributes(route, 12)
        .iter()
        .any(|(k, v)| *k == OIF && word(v) as i32 == index)
}

/// Makes a tun or tap device of freeze's own namespace again, if it is gone, and gives it what it had.
pub fn restore_device(record: &Record) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let mut work = || -> Sys<()> {
        let mut netlink = Netlink::route()?;
        let Some(link) = record.links.first() else {
            return Ok(());
        };
        let there = netlink.dump(GETLINK, &[0; 16])?;
        if there.iter().any(|m| is_named(m, &link.name)) {
            // It stays without a process to hold it, or another one has it too: as it is, it is right.
            return Ok(());
        }
        if there.iter().any(|m| is_of(m, link.index)) {
            return Err(Errno::EEXIST);
        }
        link.make_tun()?;
        furnish(link, record, &mut netlink, &mut warnings)
    };
    work().on("netlink", || "a tun device")?;
    Ok(warnings)
}

/// Gives a device of freeze's own namespace what it had; it is there, and down.
fn furnish(link: &Link, record: &Record, netlink: &mut Netlink, warnings: &mut Vec<String>) -> Sys<()> {
    link.settle(netlink)?;
    let asking = Path::new(SETTINGS).join(format!("ipv6/conf/{}/accept_dad", link.name));
    let before = std::fs::read_to_string(&asking).unwrap_or_default();
    let _ = std::fs::write(&asking, "0");
    netlink.request(SETLINK, 0, &link.head(link.flags & FLAGS, FLAGS))?;
    for extra in netlink
        .dump(GETADDR, &[0; 8])?
        .iter()
        .filter(|a| is_of(a, link.index))
    {
        let _ = netlink.request(DELADDR, 0, extra);
    }
    for address in &record.addresses {
        match netlink.request(NEWADDR, CREATE | EXCL, &address_request(&address.0)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => warnings.push(format!("device {}: an address is not there: {e}", link.name)),
        }
    }
    let _ = std::fs::write(&asking, before);
    let now = routes(netlink)?;
    for route in record.routes.iter().filter(|r| !now.contains(r)) {
        match netlink.request(NEWROUTE, CREATE | APPEND, &route.0) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => warnings.push(format!("device {}: a route is not there: {e}", link.name)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_changed_wherever_it_stands() {
        let mut route = vec![0; 12];
        put(&mut route, 1, &[10, 0, 0, 0]);
        put(&mut route, OIF, &7i32.to_ne_bytes());
        let record = Record {
            links: vec![Link::default()],
            addresses: vec![Bytes(vec![0; 8])],
            routes: vec![Bytes(route)],
            ..Record::default()
        };
        let out = renumbered(&record, 9);
        assert_eq!(out.links[0].index, 9);
        assert!(is_of(&out.addresses[0].0, 9) && leaves_by(&out.routes[0].0, 9));
        assert_eq!(out.routes[0].0.len(), record.routes[0].0.len());
    }
}
