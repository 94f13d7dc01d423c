package config

import (
	"fmt"
	"io"
	"os"
	"time"

	yaml "go.yaml.in/yaml/v3"

	"github.com/levada-io/levada/internal/strictyaml"
)

// Problem and Problems are what is wrong with a configuration, and where; Problems is an error. Each has a path such as backends[1].tls.ca, or
// the name of a flag where the configuration came from flags.
type (
	Problem  = strictyaml.Problem
	Problems = strictyaml.Problems
)

// Load reads a file as Parse does. That it cannot be read is an error of another type.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, strictyaml.MaxBytes+1)) // one more, so that Parse sees that it is too much
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return Parse(path, text)
}

// Parse makes a configuration of a YAML text: the defaults, what the text says, and what follows from it (Complete). Its errors are Problems, all of
// them at once. Files that the configuration names are not looked at; CheckFiles does.
func Parse(filename string, text []byte) (*Config, error) {
	c := Default()
	document, problems := strictyaml.Decode(filename, text, c)
	c.text = document
	c.Complete()
	problems = append(problems, c.Validate()...)
	problems.Sort()
	if err := problems.Err(); err != nil {
		return nil, err
	}
	return c, nil
}

// YAML is the configuration with everything filled in, as Parse reads it.
func (c *Config) YAML() []byte {
	text, err := yaml.Marshal(c)
	if err != nil {
		panic(fmt.Sprintf("config: %v", err)) // all types can be written
	}
	return text
}

// Simple is what the flags of the command line say: one listener, one backend, everything to it.
type Simple struct {
	Listen  string // --listen
	Backend string // --backend, a target as package discovery reads it
	Admin   string // --admin; empty is off

	Control, AdminToken string // --admin-control, --admin-token-file

	StreamAge      time.Duration // --stream-age; 0 is never
	Drain          time.Duration // --drain
	PingInterval   time.Duration // --ping-interval; 0 is never
	PingTimeout    time.Duration // --ping-timeout
	ConnectTimeout time.Duration // --connect-timeout

	TLSCert, TLSKey, TLSClientCA string // --tls-cert, --tls-key, --tls-client-ca

	// BackendTLS turns TLS to the backend on, with the system's authorities; so does each of those that follow.
	BackendTLS                                      bool   // --backend-tls
	BackendCA, BackendCert, BackendKey, BackendName string // --backend-ca, --backend-cert, --backend-key, --backend-name

	AccessLog          string // --access-log; - is the standard output, empty is off
	RestoreUnavailable bool   // --restore-unavailable
}

// DefaultSimple has the defaults of the flags, which are those of the file.
func DefaultSimple() Simple {
	c := Default()
	var b Backend
	b.SetDefaults()
	var r Route
	r.SetDefaults()
	return Simple{
		Listen: c.Listeners[0].Address, Admin: c.Admin.Address, StreamAge: r.StreamAge, Drain: c.Drain.Period,
		PingInterval: b.Ping.Interval, PingTimeout: b.Ping.Timeout, ConnectTimeout: b.ConnectTimeout, AccessLog: c.AccessLog.Path,
	}
}

// flags are the names of the fields that Simple sets.
var flags = map[string]string{
	"listeners[0].address":         "--listen",
	"listeners[0].tls.certificate": "--tls-cert",
	"listeners[0].tls.key":         "--tls-key",
	"listeners[0].tls.clientCA":    "--tls-client-ca",
	"admin.address":                "--admin",
	"admin.control":                "--admin-control",
	"admin.tokenFile":              "--admin-token-file",
	"drain.period":                 "--drain",
	"accessLog.path":               "--access-log",
	"backends[0].target":           "--backend",
	"backends[0].connectTimeout":   "--connect-timeout",
	"backends[0].ping.interval":    "--ping-interval",
	"backends[0].ping.timeout":     "--ping-timeout",
	"backends[0].tls.ca":           "--backend-ca",
	"backends[0].tls.certificate":  "--backend-cert",
	"backends[0].tls.key":          "--backend-key",
	"backends[0].tls.serverName":   "--backend-name",
	"routes[0].streamAge":          "--stream-age",
}

// Config makes a configuration of the flags. Its errors are Problems whose paths are the names of flags, also those of its CheckFiles.
func (s Simple) Config() (*Config, error) {
	c := Default()
	c.Listeners[0].Address, c.Admin.Address, c.Drain.Period, c.AccessLog.Path = s.Listen, s.Admin, s.Drain, s.AccessLog
	c.Admin.Control, c.Admin.TokenFile = s.Control, s.AdminToken
	if s.TLSCert != "" || s.TLSKey != "" || s.TLSClientCA != "" {
		t := &ListenerTLS{}
		t.SetDefaults()
		t.Certificate, t.Key, t.ClientCA = s.TLSCert, s.TLSKey, s.TLSClientCA
		c.Listeners[0].TLS = t
	}
	var b Backend
	b.SetDefaults()
	b.Name, b.Target, b.ConnectTimeout = "backend", s.Backend, s.ConnectTimeout
	b.Ping.Interval, b.Ping.Timeout = s.PingInterval, s.PingTimeout
	if s.BackendTLS || s.BackendCA != "" || s.BackendCert != "" || s.BackendKey != "" || s.BackendName != "" {
		b.TLS = &BackendTLS{CA: s.BackendCA, Certificate: s.BackendCert, Key: s.BackendKey, ServerName: s.BackendName}
	}
	c.Backends = []Backend{b}
	c.Complete()
	c.Routes[0].StreamAge, c.Routes[0].RestoreUnavailable = s.StreamAge, s.RestoreUnavailable
	c.flags = flags
	if err := c.Validate().Err(); err != nil {
		return nil, err
	}
	return c, nil
}
