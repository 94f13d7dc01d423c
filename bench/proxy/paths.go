package main

import (
	"embed"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"text/template"

	"github.com/levada-io/levada/internal/testserver"
)

//go:embed peers/*.tmpl
var peers embed.FS

// ourName is the path that goals are about.
const ourName = "ours"

// path is a way from the generator to the backend: a proxy, or none.
type path struct {
	name string
	tls  bool // it can listen with TLS
	// command makes the proxy's files in a place, and returns how it is started; nil is no proxy.
	command func(place) ([]string, error)
	// missing says why there is no such proxy here.
	missing string
}

// place is where a proxy listens and forwards to.
type place struct {
	Listen, Backend string
	Admin           string
	Cert, Key, Pem  string // files; empty without TLS
	Dir             string
	Descriptors     uint64
}

// Hosts and ports, for those that want them apart.
func (p place) ListenHost() string  { return host(p.Listen) }
func (p place) ListenPort() string  { return port(p.Listen) }
func (p place) BackendHost() string { return host(p.Backend) }
func (p place) BackendPort() string { return port(p.Backend) }

func host(address string) string { h, _, _ := net.SplitHostPort(address); return h }
func port(address string) string { _, p, _ := net.SplitHostPort(address); return p }

// paths are those of the run, in the order of the report.
func (l *lab) paths(o options) ([]path, error) {
	type maker struct {
		name string
		make func(name string) path
	}
	all := []maker{
		{"direct", func(name string) path { return path{name: name} }},
		{ourName, func(string) path { return l.ours(o.ours) }},
		{"nghttpx", l.debian("nghttp2-proxy", "nghttpx.conf.tmpl", "--conf={config}")},
		{"haproxy", l.debian("haproxy", "haproxy.cfg.tmpl", "-db", "-f", "{config}")},
		{"nginx", l.debian("nginx", "nginx.conf.tmpl", "-c", "{config}")},
		{"rawcodec", l.rawcodec},
	}
	wanted := strings.Split(o.paths, ",")
	if o.also != "" {
		name, command, found := strings.Cut(o.also, "=")
		if !found || strings.TrimSpace(command) == "" || slices.ContainsFunc(all, func(m maker) bool { return m.name == name }) {
			return nil, fmt.Errorf("-also %q: NAME=COMMAND with a new name was expected, as in x='./x -listen {listen} -backend {backend}'", o.also)
		}
		all = append(all, maker{name, func(string) path { return other(name, command) }})
		wanted = append(wanted, name)
	}
	var paths []path
	for _, m := range all {
		if o.paths != "" && !slices.Contains(wanted, m.name) {
			continue
		}
		p := m.make(m.name)
		if p.missing != "" {
			fmt.Fprintf(os.Stderr, "%s: not there: %s\n", p.name, p.missing)
		}
		paths = append(paths, p)
	}
	for _, name := range wanted {
		if o.paths != "" && !slices.ContainsFunc(paths, func(p path) bool { return p.name == name }) {
			return nil, fmt.Errorf("-paths: there is no %q", name)
		}
	}
	return paths, nil
}

// other is a proxy of which only the command is known.
func other(name, command string) path {
	return path{name: name, tls: strings.Contains(command, "{cert}"), command: func(at place) ([]string, error) {
		var argv []string
		for _, arg := range strings.Fields(command) {
			argv = append(argv, strings.NewReplacer("{listen}", at.Listen, "{backend}", at.Backend, "{cert}", at.Cert, "{key}", at.Key).Replace(arg))
		}
		return argv, nil
	}}
}

// ours is levada proxy, with metrics.
func (l *lab) ours(program string) path {
	p := path{name: ourName, tls: true}
	if program == "" {
		program = filepath.Join(l.dir, "levada")
		if out, err := exec.Command("go", "build", "-o", program, "./cmd/levada").CombinedOutput(); err != nil {
			p.missing = fmt.Sprintf("go build ./cmd/levada: %v\n%s", err, out)
			return p
		}
	}
	if out, err := exec.Command(program, "proxy", "--help").CombinedOutput(); err != nil || !strings.Contains(string(out), "--backend") {
		p.missing = "this levada has no command proxy with a flag --backend"
		return p
	}
	p.command = func(at place) ([]string, error) {
		argv := []string{program, "proxy", "--listen", at.Listen, "--backend", at.Backend, "--admin", at.Admin}
		if at.Cert != "" {
			argv = append(argv, "--tls-cert", at.Cert, "--tls-key", at.Key)
		}
		if l.profiles != "" {
			argv = append(argv, "--pprof")
		}
		return argv, nil
	}
	return p
}

// rawcodec is the proxy made of grpc-go.
func (l *lab) rawcodec(name string) path {
	p := path{name: name, tls: true}
	program := filepath.Join(l.dir, "rawcodec")
	if out, err := exec.Command("go", "build", "-o", program, "./bench/proxy/rawcodec").CombinedOutput(); err != nil {
		p.missing = fmt.Sprintf("go build ./bench/proxy/rawcodec: %v\n%s", err, out)
	}
	p.command = func(at place) ([]string, error) {
		argv := []string{program, "-listen", at.Listen, "-backend", at.Backend}
		if at.Cert != "" {
			argv = append(argv, "-cert", at.Cert, "-key", at.Key)
		}
		return argv, nil
	}
	return p
}

// debian makes the path of a program of a Debian package, whose configuration file is made of a template of peers/.
func (l *lab) debian(pkg, config string, args ...string) func(name string) path {
	return func(name string) path {
		program, err := install(name, pkg)
		if err != nil {
			return path{name: name, missing: err.Error()}
		}
		return path{name: name, tls: true, command: func(at place) ([]string, error) {
			t, err := template.ParseFS(peers, "peers/"+config)
			if err != nil {
				return nil, err
			}
			f, err := os.CreateTemp(at.Dir, name+"-*.conf")
			if err != nil {
				return nil, err
			}
			if err := errors.Join(t.Execute(f, at), f.Close()); err != nil {
				return nil, err
			}
			argv := []string{program}
			for _, arg := range args {
				argv = append(argv, strings.ReplaceAll(arg, "{config}", f.Name()))
			}
			return argv, nil
		}}
	}
}

// install finds a program, or installs it as the tests do.
func install(name, pkg string) (string, error) {
	var o outsideTest
	program := testserver.Program(&o, name, pkg)
	return program, o.err
}

// outsideTest stands for the test that package testserver reports to: what would skip or fail it is an error here.
type outsideTest struct {
	testing.TB
	err error
}

func (*outsideTest) Helper()                          {}
func (o *outsideTest) Skipf(format string, a ...any)  { o.err = fmt.Errorf(format, a...) }
func (o *outsideTest) Fatalf(format string, a ...any) { o.err = fmt.Errorf(format, a...) }

// open starts the path's proxy and returns its settings; without a proxy the process is nil, and the backend is where it listens.
func (l *lab) open(p path, backend string, overTLS bool) (*process, place, error) {
	at := place{Listen: backend, Backend: backend, Dir: l.dir, Descriptors: descriptorLimit()}
	if p.command == nil {
		return nil, at, nil
	}
	var err error
	if at.Listen, err = freeAddress(); err != nil {
		return nil, at, err
	}
	if at.Admin, err = freeAddress(); err != nil {
		return nil, at, err
	}
	if overTLS {
		at.Cert, at.Key, at.Pem = filepath.Join(l.dir, "cert.pem"), filepath.Join(l.dir, "key.pem"), filepath.Join(l.dir, "both.pem")
		if _, err := os.Stat(at.Pem); err != nil {
			if err := certificate(at.Cert, at.Key, at.Pem); err != nil {
				return nil, at, err
			}
		}
	}
	argv, err := p.command(at)
	if err != nil {
		return nil, at, err
	}
	proxy, err := l.start(p.name, proxyCore, argv...)
	if err != nil {
		return nil, at, err
	}
	return proxy, at, proxy.ready(at.Listen)
}

// descriptorLimit is how many files a process may open here.
func descriptorLimit() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return limit.Max
}
