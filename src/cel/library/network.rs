//! URLs, addresses and prefixes.

use std::net::IpAddr;

use super::super::url::Url;
use super::{Failure, Meter, Outcome, Run, Value};

pub(super) fn run(name: &str) -> Option<Run> {
    Some(match name {
        "url" => url,
        "isURL" => |meter, args| {
            let text = text(meter, args)?;
            Ok(Value::Bool(Url::parse_request(text).is_ok()))
        },
        "getScheme" => |_, args| part(args, |u| &u.scheme),
        "getHost" => |_, args| part(args, |u| &u.host),
        "getHostname" => |_, args| part(args, Url::hostname),
        "getPort" => |_, args| part(args, Url::port),
        "getEscapedPath" => |_, args| part(args, |u| &u.escaped_path),
        "getQuery" => query,
        "ip" => |meter, args| match &args[0] {
            Value::Cidr(ip, _) => Ok(Value::Ip(*ip)),
            _ => ip_of(text(meter, args)?).map(Value::Ip),
        },
        "isIP" => |meter, args| Ok(Value::Bool(ip_of(text(meter, args)?).is_ok())),
        "ip.isCanonical" => |meter, args| {
            let text = text(meter, args)?;
            Ok(Value::Bool(ip_of(text)?.to_string() == *text))
        },
        "family" => |_, args| Ok(Value::Int(if ip(&args[0])?.is_ipv4() { 4 } else { 6 })),
        "isUnspecified" => |_, args| Ok(Value::Bool(ip(&args[0])?.is_unspecified())),
        "isLoopback" => |_, args| Ok(Value::Bool(ip(&args[0])?.is_loopback())),
        "isLinkLocalMulticast" => |_, args| Ok(Value::Bool(is_link_local_multicast(ip(&args[0])?))),
        "isLinkLocalUnicast" => |_, args| Ok(Value::Bool(is_link_local(ip(&args[0])?))),
        "isGlobalUnicast" => |_, args| Ok(Value::Bool(is_global(ip(&args[0])?))),
        "cidr" => |meter, args| cidr_of(text(meter, args)?).map(|(ip, bits)| Value::Cidr(ip, bits)),
        "isCIDR" => |meter, args| Ok(Value::Bool(cidr_of(text(meter, args)?).is_ok())),
        "containsIP" => |meter, args| {
            let (prefix, bits) = cidr(&args[0])?;
            let other = match &args[1] {
                Value::Ip(ip) => *ip,
                _ => ip_of(text(meter, &args[1..])?)?,
            };
            Ok(Value::Bool(masked(prefix, bits) == masked(other, bits) && prefix.is_ipv4() == other.is_ipv4()))
        },
        "containsCIDR" => |meter, args| {
            let (prefix, bits) = cidr(&args[0])?;
            let (other, other_bits) = match &args[1] {
                Value::Cidr(ip, bits) => (*ip, *bits),
                _ => cidr_of(text(meter, &args[1..])?)?,
            };
            let inside = masked(prefix, bits) == masked(other, bits) && prefix.is_ipv4() == other.is_ipv4();
            Ok(Value::Bool(inside && bits <= other_bits))
        },
        "prefixLength" => |_, args| Ok(Value::Int(cidr(&args[0])?.1.into())),
        "masked" => |_, args| {
            let (ip, bits) = cidr(&args[0])?;
            Ok(Value::Cidr(masked(ip, bits), bits))
        },
        _ => return None,
    })
}

fn text<'v>(meter: &mut Meter, args: &'v [Value<'_>]) -> Result<&'v str, Failure> {
    match args.first() {
        Some(Value::String(text)) => {
            meter.work(text.len() / 16)?;
            Ok(text)
        }
        _ => Err(Failure::no_overload()),
    }
}

fn url<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let text = text(meter, args)?;
    meter.make(2 * text.len())?;
    let found = Url::parse_request(text).and_then(|_| Url::parse(text));
    let wrong = |why| Failure::error(format!("URL parse error during conversion from string: {why}"));
    Ok(Value::Url(found.map_err(wrong)?.into()))
}

fn part<'a>(args: &[Value<'a>], of: fn(&Url) -> &str) -> Outcome<'a> {
    match &args[0] {
        Value::Url(url) => Ok(Value::text(of(url))),
        _ => Err(Failure::no_overload()),
    }
}

fn query<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let Value::Url(url) = &args[0] else { return Err(Failure::no_overload()) };
    let mut all: Vec<(String, Vec<Value<'a>>)> = Vec::new();
    for (name, value) in url.query() {
        meter.make_items(4)?;
        match all.iter().position(|(known, _)| *known == name) {
            Some(at) => all[at].1.push(Value::text(value)),
            None => all.push((name, vec![Value::text(value)])),
        }
        meter.work(all.len())?;
    }
    super::map_of(all.into_iter().map(|(name, values)| (Value::text(name), Value::list(values))))
}

fn ip(value: &Value<'_>) -> Result<IpAddr, Failure> {
    match value {
        Value::Ip(ip) => Ok(*ip),
        _ => Err(Failure::no_overload()),
    }
}

fn cidr(value: &Value<'_>) -> Result<(IpAddr, u8), Failure> {
    match value {
        Value::Cidr(ip, bits) => Ok((*ip, *bits)),
        _ => Err(Failure::no_overload()),
    }
}

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

fn ip_of(text: &str) -> Result<IpAddr, Failure> {
    if text.contains('%') && text.split('%').next().is_some_and(|t| t.parse::<IpAddr>().is_ok()) {
        return Err(Failure::error(format!("IP address {text:?} with zone value is not allowed")));
    }
    let ip: IpAddr = text.parse().map_err(|_| {
        let why = format!("ParseAddr({text:?}): unable to parse IP");
        Failure::error(format!("IP Address {text:?} parse error during conversion from string: {why}"))
    })?;
    match is_mapped(ip) {
        true => Err(Failure::error(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))),
        false => Ok(ip),
    }
}

fn cidr_of(text: &str) -> Result<(IpAddr, u8), Failure> {
    let wrong = |why: &str| {
        let why = format!("netip.ParsePrefix({text:?}): {why}");
        Failure::error(format!("network address parse error during conversion from string: {why}"))
    };
    let (ip, bits) = text.rsplit_once('/').ok_or_else(|| wrong("no '/'"))?;
    let ip: IpAddr = ip.parse().map_err(|_| wrong("unable to parse IP"))?;
    let plain = !bits.is_empty() && bits.len() <= 3 && bits.bytes().all(|b| b.is_ascii_digit());
    let plain = plain && (bits.len() == 1 || !bits.starts_with('0'));
    let bits: u8 = bits.parse().ok().filter(|_| plain).ok_or_else(|| wrong("bad bits after slash"))?;
    if bits > if ip.is_ipv4() { 32 } else { 128 } {
        return Err(wrong("prefix length out of range"));
    }
    match is_mapped(ip) {
        true => Err(Failure::error(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))),
        false => Ok((ip, bits)),
    }
}

/// An address with nothing behind its first bits.
fn masked(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

fn is_link_local_multicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    }
}

/// As Go has it: private addresses are such too.
fn is_global(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !(broadcast || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_link_local(ip))
}
