package config

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/levada-io/levada/internal/strictyaml"
)

// splitAddress reads host:port. To listen, the host may be empty and the port 0.
func splitAddress(s string, listen bool) (host, port string, err error) {
	if s == "" {
		return "", "", errors.New("is empty")
	}
	host, port, err = net.SplitHostPort(s)
	if err != nil {
		reason := err.Error()
		if a := (*net.AddrError)(nil); errors.As(err, &a) {
			reason = a.Err // without the address, which the client names
		}
		return "", "", fmt.Errorf("%s is not host:port: %s", strictyaml.Quote(s), reason)
	}
	lowest := 1
	if listen {
		lowest = 0
	}
	if n, err := strconv.Atoi(port); err != nil || n < lowest || n > 65535 || port[0] == '+' {
		return "", "", fmt.Errorf("%s has the port %s, which is not a number from %d to 65535", strictyaml.Quote(s), strictyaml.Quote(port), lowest)
	}
	if host == "" && !listen {
		return "", "", fmt.Errorf("%s has no host", strictyaml.Quote(s))
	}
	if !isHost(host) && host != "" {
		return "", "", fmt.Errorf("%s has the host %s, which is neither an address nor a name", strictyaml.Quote(s), strictyaml.Quote(host))
	}
	return host, port, nil
}

// isAll says whether a host to listen on is all addresses of the machine, of both kinds: Go sees to that.
func isAll(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// isHost says whether s is an IP address or a name. Underscores are no part of names, but container networks have them.
func isHost(s string) bool {
	ip, _, _ := strings.Cut(s, "%") // a zone, as in fe80::1%eth0
	if net.ParseIP(ip) != nil {
		return true
	}
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if !isLabel(strings.ToLower(label)) {
			return false
		}
	}
	return true
}

func isLabel(s string) bool {
	return s != "" && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-' && strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
	}) < 0
}

// maxUnixListen is the longest path that a Unix socket can be made at: what the kernel takes, less what it is called while it is made.
const maxUnixListen = 107 - len(".4194304")

// unixPath is the path of unix:PATH, or unix:///PATH.
func unixPath(s string) (string, bool) {
	path, ok := strings.CutPrefix(s, "unix:")
	if rest, absolute := strings.CutPrefix(path, "//"); ok && absolute {
		path = rest
	}
	return path, ok
}

// systemdScheme is before the name of a socket that was passed to the process.
const systemdScheme = "systemd:"
