package redislink

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/levada-io/levada/internal/redact"
)

// Address says where a Redis server is, or the servers of a cluster, or the Sentinels that know it.
type Address struct {
	// Hosts are host:port, at least one.
	Hosts              []string
	Username, Password string
	DB                 int
	// Master is the name under which Sentinels know the master; empty if Hosts are no Sentinels.
	Master string
	// SentinelUsername and SentinelPassword are those of the Sentinels.
	SentinelUsername, SentinelPassword string
	// TLS is not nil if connections are encrypted.
	TLS *tls.Config
}

const (
	redisPort    = "6379"
	sentinelPort = "26379"
)

// forms is what an error says about the URLs that are understood.
const forms = "give redis://[USER:PASSWORD@]HOST[:PORT][,HOST...][/DB], rediss:// for TLS, or redis+sentinel://HOST[,HOST...]/MASTER[/DB] for Sentinels"

// ParseAddress reads a URL:
//
//	redis://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...][/DB]
//	redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,...]/MASTER[/DB][?sentinel-username=U&sentinel-password=P]
//
// and the same with rediss for TLS. Several hosts are servers of one Redis Cluster. The error has no credentials in it.
func ParseAddress(text string) (Address, error) {
	a, err := parseAddress(text)
	if err != nil {
		return Address{}, fmt.Errorf("the Redis URL %q: %w", redact.Text(text), err)
	}
	return a, nil
}

func parseAddress(text string) (a Address, err error) {
	scheme, rest, ok := strings.Cut(strings.TrimSpace(text), "://")
	if !ok {
		return a, errors.New(forms)
	}
	port := redisPort
	switch scheme {
	case "redis":
	case "rediss":
		a.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	case "redis+sentinel", "rediss+sentinel":
		port = sentinelPort
		if scheme == "rediss+sentinel" {
			a.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		}
	default:
		return a, fmt.Errorf("the scheme %s is not known: %s", scheme, forms)
	}
	rest, query, _ := strings.Cut(rest, "?")
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		user, password, _ := strings.Cut(rest[:at], ":")
		rest = rest[at+1:]
		if a.Username, err = url.PathUnescape(user); err == nil {
			a.Password, err = url.PathUnescape(password)
		}
		if err != nil {
			return a, errors.New("user or password has a % that begins no escape: write it as %25")
		}
	}
	hosts, path, _ := strings.Cut(rest, "/")
	for host := range strings.SplitSeq(hosts, ",") {
		h, err := hostPort(host, port)
		if err != nil {
			return a, err
		}
		a.Hosts = append(a.Hosts, h)
	}
	if port == sentinelPort {
		if a.Master, path, _ = strings.Cut(path, "/"); a.Master == "" {
			return a, fmt.Errorf("the name of the master is missing, which the Sentinels know: %s", forms)
		}
	}
	if path != "" {
		if a.DB, err = strconv.Atoi(path); err != nil || a.DB < 0 {
			return a, fmt.Errorf("the database %q is not a number: %s", path, forms)
		}
	}
	return a, a.parseQuery(query)
}

func (a *Address) parseQuery(query string) error {
	values, err := url.ParseQuery(query)
	if err != nil {
		return errors.New("its parameters are malformed")
	}
	for name := range values {
		switch {
		case a.Master != "" && name == "sentinel-username":
			a.SentinelUsername = values.Get(name)
		case a.Master != "" && name == "sentinel-password":
			a.SentinelPassword = values.Get(name)
		default:
			return fmt.Errorf("the parameter %q is not known: only sentinel-username and sentinel-password are, with redis+sentinel", name)
		}
	}
	return nil
}

func hostPort(host, port string) (string, error) {
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = net.JoinHostPort(strings.Trim(host, "[]"), port)
	}
	name, number, err := net.SplitHostPort(host)
	if n, bad := strconv.ParseUint(number, 10, 16); err != nil || bad != nil || n == 0 || name == "" {
		return "", fmt.Errorf("%q is no host and port: %s", host, forms)
	}
	return host, nil
}
