package config

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/levada-io/levada/internal/proxy/discovery"
	"github.com/levada-io/levada/internal/strictyaml"
)

// Every address at which the process listens is noted here once: those of the listeners, admin.address and admin.control. Two that the kernel would not let it open
// together are one error of the configuration. So are two Unix sockets at one path, of which the second would silently replace the first.

const (
	adminAddress = "admin.address"
	adminControl = "admin.control"
)

// taken are the addresses at which the process listens.
type taken struct {
	exact map[string]address // by host and port, by path, or by the name of a passed socket
	port  map[string]address // the last one at each port
	all   map[string]address // by port, of those that are all addresses of the machine
}

func newTaken() taken {
	return taken{exact: map[string]address{}, port: map[string]address{}, all: map[string]address{}}
}

// address is one of them. At is the path of its field.
type address struct{ host, text, at string }

// hostPort makes the forms of an address equal that the kernel treats alike: localhost and 127.0.0.1, ::1 and 0:0::1, names in any case, and 80 and 080.
func hostPort(host, port string) (string, string) {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "localhost" {
		host = "127.0.0.1" // as package net resolves it to listen
	}
	ip, zone, _ := strings.Cut(host, "%")
	if parsed := net.ParseIP(ip); parsed != nil {
		if host = parsed.String(); zone != "" {
			host += "%" + zone
		}
	}
	if n, err := strconv.Atoi(port); err == nil {
		port = strconv.Itoa(n)
	}
	return host, port
}

// unixKey is the name under which a Unix socket is noted. Relative paths begin where the process runs, as the kernel has it.
func unixKey(path string) string {
	if absolute, err := filepath.Abs(path); err == nil {
		path = absolute
	}
	return "unix:" + filepath.Clean(path)
}

// address reports one that cannot be listened on, or not together with an earlier one. Port 0 is a new one each time.
func (v *validation) address(at, a string) {
	host, port, err := splitAddress(a, true)
	if err != nil {
		v.add(at, Problem{Message: err.Error(), Expected: "host:port, or :port for all addresses of this machine"})
		return
	}
	if host, port = hostPort(host, port); port == "0" {
		return
	}
	key := net.JoinHostPort(host, port)
	before, twice := v.taken.exact[key]
	if !twice {
		before, twice = v.taken.all[port]
	}
	if !twice && isAll(host) {
		before, twice = v.taken.port[port]
	}
	if twice {
		message := v.sameAs(a, before)
		if host != before.host {
			message = fmt.Sprintf("%s and %s, the address of %s%s, have the same port on the same addresses", strictyaml.Quote(a), strictyaml.Quote(before.text),
				v.owner(before.at), v.line(before.at))
		}
		v.add(at, Problem{Message: message, Hint: "give each one its own"})
		return
	}
	this := address{host, a, at}
	v.taken.exact[key], v.taken.port[port] = this, this
	if isAll(host) {
		v.taken.all[port] = this
	}
}

// unix reports a path that no socket can be made at, or not together with an earlier one.
func (v *validation) unix(at, a, path string) {
	switch {
	case path == "" || strings.HasSuffix(path, "/") || strings.HasPrefix(path, "@"):
		v.found(at, strictyaml.Quote(a), "unix:PATH, such as unix:/run/levada/proxy.sock")
		return
	case len(path) > maxUnixListen:
		v.found(at, fmt.Sprintf("a path of %d bytes", len(path)), fmt.Sprintf("at most %d bytes, as the kernel takes for a socket", maxUnixListen))
		return
	}
	v.exactly(at, a, unixKey(path), path)
}

// systemd reports a name that no passed socket can have, or that an earlier listener has.
func (v *validation) systemd(at string, l *Listener) {
	_, name := l.Network()
	if name == "" || strings.ContainsAny(name, ": ") {
		v.found(at+".address", strictyaml.Quote(l.Address), "systemd:NAME, with the FileDescriptorName= of the .socket unit")
		return
	}
	v.exactly(at+".address", l.Address, l.Address, name)
	if l.ReusePort {
		v.add(at+".reusePort", Problem{Message: "is true, and systemd has opened the socket", Hint: "leave it away: clients wait at the socket of systemd while a process is replaced"})
	}
}

// exactly notes an address that collides only with the same one.
func (v *validation) exactly(at, text, key, host string) {
	if before, twice := v.taken.exact[key]; twice {
		v.add(at, Problem{Message: v.sameAs(text, before), Hint: "give each one its own"})
		return
	}
	v.taken.exact[key] = address{host, text, at}
}

func (v *validation) sameAs(text string, before address) string {
	return fmt.Sprintf("%s is the address of %s%s too", strictyaml.Quote(text), v.owner(before.at), v.line(before.at))
}

// owner is whose address a field is, for a sentence: a listener, or the field itself of those that have two.
func (v *validation) owner(at string) string {
	if at == adminAddress || at == adminControl {
		return v.name(at)
	}
	return parent(v.name(at))
}

func (v *validation) admin() {
	a := v.c.Admin
	if a.Address != "" {
		v.address(adminAddress, a.Address)
	}
	if a.Control == "" {
		return
	}
	if path, unix := unixPath(a.Control); unix {
		v.unix(adminControl, a.Control, path)
		return
	}
	v.address(adminControl, a.Control)
	if host, _, err := splitAddress(a.Control, true); err == nil && !isLoopback(host) && a.TokenFile == "" {
		v.add(adminControl, Problem{Message: strictyaml.Quote(a.Control) + " can be reached from other machines, and there is no token",
			Hint: "set admin.tokenFile (--admin-token-file), or listen at 127.0.0.1 or unix:PATH"})
	}
}

// accessLog reports a path at which something else is: lines that are appended to a key destroy it, and a socket takes none.
func (v *validation) accessLog() {
	log := v.c.AccessLog.Path
	if log == "" || log == "-" {
		return
	}
	key := unixKey(log)
	if before, twice := v.taken.exact[key]; twice {
		v.add("accessLog.path", Problem{Message: fmt.Sprintf("%s is the Unix socket of %s%s", strictyaml.Quote(log), v.owner(before.at), v.line(before.at)), Hint: "give each one its own"})
		return
	}
	for _, f := range v.c.files() {
		if f.path != "" && unixKey(f.path) == key {
			v.add("accessLog.path", Problem{Message: fmt.Sprintf("%s is the file of %s%s too, which lines of the log would destroy", strictyaml.Quote(log), v.name(f.at), v.line(f.at)),
				Hint: "give the access log a file of its own"})
			return
		}
	}
}

// target asks those who will follow it.
func (v *validation) target(at, target string) {
	_, err := discovery.New(target, discovery.Options{Kubernetes: func(discovery.Service, discovery.Options) (discovery.Source, error) { return nil, nil }})
	if target == "" {
		v.required(at, discovery.Forms)
	} else if err != nil {
		v.add(at, Problem{Message: strings.TrimPrefix(err.Error(), fmt.Sprintf("target %q: ", target))})
	} else {
		v.loop(at, target)
	}
}

// loop reports a target that is an address of the proxy itself. Calls to a listener would come again without end; at an administrative address nobody speaks gRPC.
func (v *validation) loop(at, target string) {
	for endpoint := range strings.SplitSeq(strings.TrimPrefix(target, "dns:///"), ",") {
		endpoint = strings.TrimSpace(endpoint)
		l, itself := v.own(endpoint)
		switch {
		case !itself:
			continue
		case l.at == adminAddress || l.at == adminControl:
			v.add(at, Problem{Message: fmt.Sprintf("%s is %s%s, which serves no gRPC", strictyaml.Quote(endpoint), v.name(l.at), v.line(l.at)), Hint: "name the address of the backend"})
		default:
			v.add(at, Problem{Message: fmt.Sprintf("%s is this proxy itself, %s%s: calls would come again without end", strictyaml.Quote(endpoint), v.name(l.at), v.line(l.at))})
		}
		return
	}
}

// own finds the address of the process that an endpoint is.
func (v *validation) own(endpoint string) (address, bool) {
	if path, ok := unixPath(endpoint); ok {
		l, itself := v.taken.exact[unixKey(path)]
		return l, itself
	}
	host, port, err := splitAddress(endpoint, false)
	if err != nil {
		return address{}, false // a target of another kind
	}
	host, port = hostPort(host, port)
	l, itself := v.taken.exact[net.JoinHostPort(host, port)]
	if !itself && isLoopback(host) {
		l, itself = v.taken.all[port]
	}
	return l, itself
}
