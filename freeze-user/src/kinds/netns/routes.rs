//! Routes, the rules that choose among their tables, and neighbours.

use super::*;

impl Record {
    /// Sets routes and rules.
    pub(super) fn set_routes(&self, netlink: &mut Netlink, warnings: &mut Vec<String>) -> Sys<()> {
        let now = routes(netlink)?;
        for extra in now.iter().filter(|r| !self.routes.contains(r)) {
            let _ = netlink.request(DELROUTE, 0, &extra.0);
        }
        let mut rest: Vec<&Bytes> = self.routes.iter().filter(|r| !now.contains(r)).collect();
        if let Some(wanted) = &self.prefixes {
            let now = prefixes(netlink)?;
            for extra in now.iter().filter(|r| !wanted.contains(r)) {
                let _ = netlink.request(DELROUTE, 0, &extra.0);
            }
            // That to the other end of an address (peer) comes with the last step of looking for duplicates, which is none
            // where the device had its carrier only after the address was set.
            rest.extend(wanted.iter().filter(|r| !now.contains(r)));
        }
        // The way to a neighbour is looked for as rules have it. They may have come later than a route, and forbid it; or
        // lead to where it is.
        set_as_many(netlink, &mut rest);
        self.set_rules(netlink)?;
        if let Some(e) = set_as_many(netlink, &mut rest) {
            warnings.push(format!("{} route(s) are not there: {e}", rest.len()));
        }
        Ok(())
    }

    fn set_rules(&self, netlink: &mut Netlink) -> Sys<()> {
        let now = rules(netlink)?;
        for extra in now.iter().filter(|r| !self.rules.contains(r)) {
            netlink.request(DELRULE, 0, &extra.0)?;
        }
        for wanted in self.rules.iter().filter(|r| !now.contains(r)) {
            netlink.request(NEWRULE, CREATE | EXCL, &wanted.0)?;
        }
        Ok(())
    }
}

/// Sets routes, and leaves those that cannot be set; why, if any.
fn set_as_many(netlink: &mut Netlink, rest: &mut Vec<&Bytes>) -> Option<Errno> {
    // A route by way of a neighbour wants the route to that one: as often as one more can be set.
    loop {
        let before = rest.len();
        let mut last = None;
        rest.retain(
            |route| match netlink.request(NEWROUTE, CREATE | APPEND, &route.0) {
                Ok(()) | Err(Errno::EEXIST) => false,
                Err(e) => {
                    last = Some(e);
                    true
                }
            },
        );
        if rest.is_empty() || rest.len() == before {
            return last;
        }
    }
}

/// Routes of all tables, without what only counts, and without those that are derived from addresses.
pub(super) fn routes(netlink: &mut Netlink) -> Sys<Vec<Bytes>> {
    // Routes of the local table come with the addresses; so do those to what they are directly joined to.
    let derived = |head: &[u8]| is_kernels(head) && (is_local(head) || i32::from(head[0]) == libc::AF_INET6);
    let mut out = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        out.extend(told(netlink, family, |head| !derived(head))?);
    }
    Ok(out)
}

/// Routes that IPv6 addresses have brought along, but those of the local table.
pub(super) fn prefixes(netlink: &mut Netlink) -> Sys<Vec<Bytes>> {
    told(netlink, libc::AF_INET6, |head| {
        is_kernels(head) && !is_local(head)
    })
}

fn is_kernels(head: &[u8]) -> bool {
    const BY_KERNEL: u8 = 2;
    head[5] == BY_KERNEL
}

fn is_local(head: &[u8]) -> bool {
    const LOCAL_TABLE: u8 = 255;
    head[4] == LOCAL_TABLE
}

/// The routes of a family that are `wanted` by their headers.
fn told(netlink: &mut Netlink, family: i32, wanted: impl Fn(&[u8]) -> bool) -> Sys<Vec<Bytes>> {
    const MULTIPATH: u16 = 9;
    const CACHEINFO: u16 = 12;
    const EXPIRES: u16 = 23;
    const CLONED: u32 = 0x200;
    let mut out = Vec::new();
    let mut ask = vec![0; 12];
    ask[0] = family as u8;
    for message in netlink.dump(GETROUTE, &ask)? {
        let Some(head) = message.get(..12) else { continue };
        if !wanted(head) || word(&head[8..]) & CLONED != 0 {
            continue;
        }
        let mut kept = head.to_vec();
        // Whether a next hop is dead or has no carrier is found out anew; that it is beside the device was said (onlink).
        let said = word(&head[8..]) & u32::from(ONLINK);
        kept[8..12].copy_from_slice(&said.to_ne_bytes());
        let mut all = attributes(&message, 12);
        all.sort();
        for (kind, value) in all {
            if kind == MULTIPATH {
                put(&mut kept, kind, &next_hops(value));
            } else if kind != CACHEINFO {
                put(&mut kept, kind, value);
            } else if let Some(seconds) = expires(value).filter(|_| !is_kernels(head)) {
                put(&mut kept, EXPIRES, &seconds.to_ne_bytes());
            }
        }
        out.push(Bytes(kept));
    }
    Ok(out)
}

/// RTNH_F_ONLINK.
const ONLINK: u8 = 4;

/// The next hops of a route (`struct rtnexthop`: length, flags, weight, device; attributes), each with what was said of it only.
fn next_hops(all: &[u8]) -> Vec<u8> {
    const HEAD: usize = 8;
    let mut out = all.to_vec();
    let mut at = 0;
    while let Some(head) = out.get_mut(at..at + HEAD) {
        head[2] &= ONLINK;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        at += length.max(HEAD).next_multiple_of(4);
    }
    out
}

/// In how many seconds a route goes away, by its `struct rta_cacheinfo`, which counts hundredths.
fn expires(cacheinfo: &[u8]) -> Option<u32> {
    let hundredths = word(cacheinfo.get(8..12)?) as i32;
    (hundredths > 0).then_some((hundredths as u32).div_ceil(100))
}

/// Rules that choose a table.
pub(super) fn rules(netlink: &mut Netlink) -> Sys<Vec<Bytes>> {
    let mut out = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut ask = vec![0; 12];
        ask[0] = family as u8;
        match netlink.dump(GETRULE, &ask) {
            Ok(all) => out.extend(all.into_iter().map(Bytes)),
            // Without multiple tables there are none.
            Err(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}

/// Neighbours that are known by their link address, and those that are answered for.
pub(super) fn neighbours(netlink: &mut Netlink, links: &[Link]) -> Sys<Vec<Bytes>> {
    const PROXY: u8 = 1 << 3;
    const CACHEINFO: u16 = 3;
    const PROBES: u16 = 4;
    let mut out = Vec::new();
    for proxies in [false, true] {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut ask = vec![0; 12];
            ask[0] = family as u8;
            if proxies {
                ask[10] = PROXY;
            }
            for message in netlink.dump(GETNEIGH, &ask)? {
                let Some(head) = message.get(..12) else { continue };
                let wanted = match proxies {
                    true => head[10] & PROXY != 0,
                    false => is_by_hand(&message, links) || is_known(&message),
                };
                if !wanted {
                    continue;
                }
                let mut kept = head.to_vec();
                // One that is just being asked whether it is still there will be asked again when it is used.
                if state(head) & (DELAY | PROBE) != 0 {
                    kept[8..10].copy_from_slice(&STALE.to_ne_bytes());
                }
                for (kind, value) in attributes(&message, 12) {
                    if kind != CACHEINFO && kind != PROBES {
                        put(&mut kept, kind, value);
                    }
                }
                out.push(Bytes(kept));
            }
        }
    }
    Ok(out)
}

const REACHABLE: u16 = 0x02;
const STALE: u16 = 0x04;
const DELAY: u16 = 0x08;
const PROBE: u16 = 0x10;

/// What is known of a neighbour (NUD_*).
fn state(head: &[u8]) -> u16 {
    u16::from_ne_bytes([head[8], head[9]])
}

/// Whether a neighbour's link address is known, and may be asked for again.
fn is_known(message: &[u8]) -> bool {
    state(message) & (REACHABLE | STALE | DELAY | PROBE) != 0
}

/// Whether a neighbour was entered by hand: permanent, or not to be asked for where others are.
fn is_by_hand(message: &[u8], links: &[Link]) -> bool {
    const PERMANENT: u16 = 0x80;
    const NOARP: u16 = 0x40;
    const NDA_DST: u16 = 1;
    /// IFF_LOOPBACK, IFF_POINTOPOINT, IFF_NOARP: there the kernel asks for nobody.
    const UNASKED: u32 = 0x8 | 0x10 | 0x80;
    const UNICAST: u8 = 1;
    let state = state(message);
    let index = word(&message[4..]) as i32;
    let asks = links.iter().any(|l| l.index == index && l.flags & UNASKED == 0);
    let all = attributes(message, 12);
    // The kernel knows those of groups and of everybody by itself.
    let group = all
        .iter()
        .any(|(k, v)| *k == NDA_DST && matches!(v.first(), Some(0xe0..)));
    state & PERMANENT != 0 || state & NOARP != 0 && asks && message[11] == UNICAST && !group
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_finds_of_a_next_hop_is_not_kept() {
        let hop = |flags| [16, 0, flags, 2, 5, 0, 0, 0, 8, 0, 5, 0, 10, 0, 0, 1];
        let of = |all: &[[u8; 16]]| next_hops(&all.concat());
        assert_eq!(of(&[hop(0x11), hop(0x14)]), [hop(0), hop(4)].concat());
        assert_eq!(next_hops(&[1, 2]), [1, 2]);
    }

    #[test]
    fn a_route_expires_in_whole_seconds() {
        let mut info = [0; 32];
        assert_eq!(expires(&info), None);
        info[8..12].copy_from_slice(&250u32.to_ne_bytes());
        assert_eq!(expires(&info), Some(3));
    }
}
