package config

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/strictyaml"
)

// Bounds of numbers that have no natural one. They are far from what anybody wants; a number beyond is a mistake in its unit.
const (
	maxDuration            = 30 * 24 * time.Hour
	maxConnect             = 5 * time.Minute // connecting and handshakes: nobody waits longer
	maxConnections         = 1_000_000
	maxStreams             = 1_000_000
	minHeaderBytes         = 4 << 10  // below it ordinary requests do not fit
	maxHeaderBytes         = 16 << 20 // what grpc-go's servers take
	maxResponseHeaderBytes = 256 << 20
	maxMessage             = math.MaxUint32 // what the length in front of a message can say
	maxHold                = 64 << 20
	maxBuffer              = 16 << 20
	minMemory              = 1 << 20
	maxRate                = 1e9
	maxAttempts            = 5 // as in gRPC's own retry policy
	maxWeight              = 1_000_000
	maxJitter              = 0.5
)

// Validate reports everything that cannot work, in the order of the fields. It only looks: at the configuration, and neither at files nor at the
// network.
func (c *Config) Validate() Problems {
	v := &validation{c: c, known: map[string]bool{}}
	for _, b := range c.Backends {
		if b.Name != "" {
			v.known[b.Name] = true
		}
	}
	v.listeners()
	v.process()
	v.backends()
	v.routes()
	return v.problems
}

type validation struct {
	c        *Config
	known    map[string]bool // names of backends
	taken    taken
	problems Problems
}

func (v *validation) add(path string, p Problem) {
	p.Path = v.name(path)
	if r := []rune(p.Message); len(r) > 500 {
		p.Message = string(r[:500]) + "..."
	}
	v.problems = v.c.text.Add(v.problems, p)
}

// name of a field, or of the flag that it is set by.
func (v *validation) name(path string) string { return cmp.Or(v.c.flags[path], path) }

func (v *validation) listeners() {
	if len(v.c.Listeners) == 0 {
		v.add("listeners", Problem{Message: "there is none", Expected: "at least one, or leave the field away for 127.0.0.1:8080"})
	}
	v.taken = newTaken()
	names := map[string]string{}
	for i, l := range v.c.Listeners {
		at := fmt.Sprintf("listeners[%d]", i)
		if l.Name != "" && !isBackendName(l.Name) {
			v.found(at+".name", strictyaml.Quote(l.Name), "up to 63 letters, digits, '-', '_' and '.'")
		} else if l.Name != "" {
			v.unique(names, at+".name", l.Name)
		}
		path, unix := unixPath(l.Address)
		switch {
		case l.Address == "":
			v.required(at+".address", "host:port, or :port for all addresses of this machine")
		case unix:
			v.unix(at+".address", l.Address, path)
		case strings.HasPrefix(l.Address, systemdScheme):
			v.systemd(at, &l)
		default:
			v.address(at+".address", l.Address)
		}
		if l.Mode != defaultMode && !unix {
			v.add(at+".mode", Problem{Message: fmt.Sprintf("is set, and %s is no Unix socket", strictyaml.Quote(l.Address)), Hint: "leave it away"})
		}
		if t := l.TLS; t != nil {
			if t.Certificate == "" {
				v.required(at+".tls.certificate", "the path of a PEM file with the certificate and those that signed it")
			}
			if t.Key == "" {
				v.required(at+".tls.key", "the path of a PEM file with the private key")
			}
			for j, c := range t.Certificates {
				if c.Certificate == "" {
					v.required(fmt.Sprintf("%s.tls.certificates[%d].certificate", at, j), "the path of a PEM file with the certificate and those that signed it")
				}
				if c.Key == "" {
					v.required(fmt.Sprintf("%s.tls.certificates[%d].key", at, j), "the path of a PEM file with the private key")
				}
			}
		}
		v.count(at+".maxConnections", l.MaxConnections, 0, maxConnections)
		v.count(at+".maxStreams", l.MaxStreams, 1, maxStreams)
		v.size(at+".maxHeaderBytes", l.MaxHeaderBytes, minHeaderBytes, maxHeaderBytes)
		v.duration(at+".handshakeTimeout", l.HandshakeTimeout, maxConnect)
		v.durationOr0(at+".idleTimeout", l.IdleTimeout, maxDuration)
		v.durationOr0(at+".stallTimeout", l.StallTimeout, maxDuration)
		v.durationOr0(at+".keepalive.interval", l.Keepalive.Interval, maxDuration)
		v.duration(at+".keepalive.timeout", l.Keepalive.Timeout, maxDuration)
		if v.count(at+".abuse.burst", l.Abuse.Burst, 0, maxRate) && l.Abuse.Burst > 0 {
			v.count(at+".abuse.perSecond", l.Abuse.PerSecond, 1, maxRate)
		}
		v.forwarded(at+".forwarded", &v.c.Listeners[i].Forwarded, l.TLS != nil && l.TLS.ClientCA != "")
	}
	v.admin()
}

// process is what concerns none of the lists.
func (v *validation) process() {
	v.durationOr0("drain.period", v.c.Drain.Period, maxDuration)
	v.durationOr0("drain.notice", v.c.Drain.Notice, maxDuration)
	v.accessLog()
	v.metrics()
	v.number("tracing.sample", v.c.Tracing.Sample, 0, 1)
	if v.c.Limits.Memory != 0 {
		v.size("limits.memory", v.c.Limits.Memory, minMemory, math.MaxInt64)
	}
}

func (v *validation) metrics() {
	for i, text := range v.c.Metrics.Methods {
		at := fmt.Sprintf("metrics.methods[%d]", i)
		service, method, slash := strings.Cut(strings.TrimSuffix(text, "*"), "/")
		star := strings.HasSuffix(text, "*")
		ok := text == "*" || isName(service) && (slash && (star && method == "" || isName(method)) || !slash && star && strings.HasSuffix(service, "."))
		if !ok {
			p := Problem{Message: "is " + strictyaml.Quote(text), Expected: "a method such as shop.Orders/Watch, or shop.Orders/*, shop.* or * for those that begin like that"}
			if trimmed := strings.Trim(text, "/"); trimmed != text && strings.Contains(trimmed, "/") {
				p.DidYouMean = trimmed
			} else if isName(text) {
				p.DidYouMean = text + "/*"
			}
			v.add(at, p)
		}
	}
	v.count("metrics.maxMethods", v.c.Metrics.MaxMethods, 0, 10_000)
}

func (v *validation) backends() {
	if len(v.c.Backends) == 0 {
		v.add("backends", Problem{Message: "there is none", Expected: "at least one, with a name and a target"})
	}
	first := map[string]string{}
	for i, b := range v.c.Backends {
		at := fmt.Sprintf("backends[%d]", i)
		switch {
		case b.Name == "":
			v.required(at+".name", "a name of your choice, which routes and metrics use")
		case !isBackendName(b.Name):
			v.found(at+".name", strictyaml.Quote(b.Name), "up to 63 letters, digits, '-', '_' and '.'")
		default:
			v.unique(first, at+".name", b.Name)
		}
		v.target(at+".target", b.Target)
		if t := b.TLS; t != nil {
			switch {
			case t.Certificate != "" && t.Key == "":
				v.required(at+".tls.key", "the key of the certificate, as there is one")
			case t.Certificate == "" && t.Key != "":
				v.required(at+".tls.certificate", "the certificate of the key, as there is one")
			}
			if t.ServerName == "" && strings.Contains(b.Target, "unix:") {
				v.required(at+".tls.serverName", "the name in the certificate, which a Unix socket does not have")
			}
			if t.ServerName != "" && !isHost(t.ServerName) {
				v.found(at+".tls.serverName", strictyaml.Quote(t.ServerName), "a name or an address, without a port")
			}
		}
		v.duration(at+".connectTimeout", b.ConnectTimeout, maxConnect)
		v.durationOr0(at+".ping.interval", b.Ping.Interval, maxDuration)
		v.duration(at+".ping.timeout", b.Ping.Timeout, maxDuration)
		v.size(at+".maxResponseHeaderBytes", b.MaxResponseHeaderBytes, minHeaderBytes, maxResponseHeaderBytes)
		v.count(at+".maxConnections", b.MaxConnections, 0, maxConnections)
		v.durationOr0(at+".balance.slowStart", b.Balance.SlowStart, maxDuration)
		v.duration(at+".balance.decay", b.Balance.Decay, maxDuration)
		v.ejection(at+".ejection", b.Ejection)
		v.healthCheck(at+".healthCheck", b.HealthCheck)
		v.limits(at+".limits", b.Limits)
		v.durationOr0(at+".waitForReady", b.WaitForReady, maxDuration)
	}
}

func (v *validation) healthCheck(at string, h HealthCheck) {
	v.durationOr0(at+".interval", h.Interval, maxDuration)
	v.duration(at+".timeout", h.Timeout, maxConnect)
	if h.Service != "" && !isName(h.Service) {
		v.found(at+".service", strictyaml.Quote(h.Service), "the full name of a service such as shop.Orders")
	}
	v.count(at+".unhealthyThreshold", h.UnhealthyThreshold, 1, 1000)
	v.count(at+".healthyThreshold", h.HealthyThreshold, 1, 1000)
	if h.Interval == 0 && h.Service != "" {
		v.required(at+".interval", "the time between two checks, such as 5s, as there is a service to check")
	}
}

func (v *validation) limits(at string, l CallLimits) {
	v.count(at+".callsPerEndpoint", l.CallsPerEndpoint, 0, math.MaxInt32)
	v.duration(at+".waitTimeout", l.WaitTimeout, maxDuration)
	if v.count(at+".waiting", l.Waiting, 0, 1_000_000) && l.Waiting > 0 && l.CallsPerEndpoint == 0 {
		v.required(at+".callsPerEndpoint", "the calls that an endpoint may have, as calls may wait for room")
	}
}

// WithoutKubernetes reports the targets that a program without the client of Kubernetes cannot follow.
func (c *Config) WithoutKubernetes() Problems {
	v := &validation{c: c}
	for i, b := range c.Backends {
		if strings.HasPrefix(b.Target, "kubernetes:") {
			v.add(fmt.Sprintf("backends[%d].target", i), Problem{Message: "this program was built without the client of Kubernetes",
				Hint: "use levada proxy, which has it, or dns:/// with a headless Service"})
		}
	}
	return v.problems
}

func (v *validation) ejection(at string, e Ejection) {
	v.count(at+".consecutiveFailures", e.ConsecutiveFailures, 0, math.MaxInt32)
	v.number(at+".failureShare", e.FailureShare, 0, 1)
	v.count(at+".minRequests", e.MinRequests, 1, math.MaxInt32)
	v.duration(at+".window", e.Window, maxDuration)
	if v.duration(at+".baseTime", e.BaseTime, maxDuration) && v.duration(at+".maxTime", e.MaxTime, maxDuration) && e.MaxTime < e.BaseTime {
		v.found(at+".maxTime", short(e.MaxTime), fmt.Sprintf("baseTime (%s) or more", short(e.BaseTime)))
	}
	v.number(at+".maxEjected", e.MaxEjected, 0, 1)
	v.number(at+".panicThreshold", e.PanicThreshold, 0, 1)
}

func (v *validation) routes() {
	if len(v.c.Routes) == 0 && len(v.c.Backends) > 1 {
		v.add("routes", Problem{Message: "there is none, and more than one backend", Expected: "routes that say which calls go to which backend"})
	}
	for i, l := range v.c.Listeners {
		serves := func(r Route) bool {
			name := r.Match.Listener // one that no listener has is reported as such
			return name == "" || name == l.Name || !slices.ContainsFunc(v.c.Listeners, func(x Listener) bool { return x.Name == name })
		}
		if len(v.c.Routes) > 0 && !slices.ContainsFunc(v.c.Routes, serves) && !v.c.text.Broken("routes") {
			v.add(fmt.Sprintf("listeners[%d]", i), Problem{Message: "has no route: all of them are for other listeners", Hint: "add a route, or take the listener away"})
		}
	}
	first := map[Match]string{}
	for i := range v.c.Routes {
		r := &v.c.Routes[i]
		at := fmt.Sprintf("routes[%d]", i)
		if v.match(at+".match", r.Match) {
			m := r.Match
			m.Authority = strings.ToLower(m.Authority)
			if before, twice := first[m]; !twice {
				first[m] = at
			} else {
				v.add(at, Problem{Message: fmt.Sprintf("can never match, because %s%s has the same match (%s)", before, v.line(before), r.Match),
					Hint: "take one of them away, or make its match more specific"})
			}
		}
		v.shares(at, r)
		v.durationOr0(at+".timeout", r.Timeout, maxDuration)
		v.durationOr0(at+".idleTimeout", r.IdleTimeout, maxDuration)
		v.durationOr0(at+".ping.interval", r.Ping.Interval, maxDuration)
		v.duration(at+".ping.timeout", r.Ping.Timeout, maxDuration)
		v.durationOr0(at+".streamAge", r.StreamAge, maxDuration)
		v.number(at+".streamAgeJitter", r.StreamAgeJitter, 0, maxJitter)
		v.retry(at+".retry", r)
		v.number(at+".retryBudget.ratio", r.RetryBudget.Ratio, 0, 1)
		v.number(at+".retryBudget.minPerSecond", r.RetryBudget.MinPerSecond, 0, maxRate)
		v.size(at+".maxMessageBytes.request", r.MaxMessageBytes.Request, 0, maxMessage)
		v.size(at+".maxMessageBytes.response", r.MaxMessageBytes.Response, 0, maxMessage)
		if v.size(at+".holdBytes", r.HoldBytes, 0, maxHold) && v.c.Limits.Memory >= minMemory && r.HoldBytes > max(v.c.Limits.Memory, defaultHold) {
			v.found(at+".holdBytes", r.HoldBytes.String(), fmt.Sprintf("at most limits.memory (%s)", v.c.Limits.Memory))
		}
		v.number(at+".rateLimit.perSecond", r.RateLimit.PerSecond, 0, maxRate)
		if v.count(at+".rateLimit.burst", r.RateLimit.Burst, 0, maxRate) && r.RateLimit.Burst > 0 && r.RateLimit.PerSecond == 0 {
			v.required(at+".rateLimit.perSecond", "the calls per second that pass, as there is a burst")
		}
		if r.Forwarded != nil {
			v.forwarded(at+".forwarded", r.Forwarded, slices.ContainsFunc(v.c.Listeners, func(l Listener) bool { return l.TLS != nil && l.TLS.ClientCA != "" }))
		}
		v.headers(at+".headers", &r.Headers)
	}
}

// match reports whether it can be compared with others.
func (v *validation) match(at string, m Match) bool {
	before := len(v.problems)
	name, isPrefix := strings.CutSuffix(m.Service, ".*")
	switch {
	case m.Service == "":
		if m.Method != "" {
			v.required(at+".service", "the service of the method, as there is one")
		}
	case m.Service == "*":
		v.add(at+".service", Problem{Message: `is "*"`, Hint: "leave the field away, which matches everything"})
	case strings.Contains(m.Service, "/"):
		p := Problem{Message: strictyaml.Quote(m.Service) + " has a slash", Expected: "the full name of a service, such as shop.Orders"}
		if service, method, ok := strings.Cut(strings.Trim(m.Service, "/"), "/"); ok && isName(service) && isName(method) {
			p.DidYouMean = fmt.Sprintf("service: %s, method: %s", service, method)
		} else if service := strings.Trim(m.Service, "/"); isName(service) {
			p.DidYouMean = service
		}
		v.add(at+".service", p)
	case !isName(name):
		v.found(at+".service", strictyaml.Quote(m.Service), "a full name such as shop.Orders, or a prefix of names such as shop.*")
	case isPrefix && m.Method != "":
		v.add(at+".method", Problem{Message: fmt.Sprintf("is set, and the service %s is a prefix", strictyaml.Quote(m.Service)), Hint: "name the service, or leave the method away"})
	}
	if m.Method != "" && !isName(m.Method) {
		v.found(at+".method", strictyaml.Quote(m.Method), "the name of a method such as Watch")
	}
	if a := m.Authority; a == "*" {
		v.add(at+".authority", Problem{Message: `is "*"`, Hint: "leave the field away, which matches everything"})
	} else if end, ok := strings.CutPrefix(a, "*."); a != "" && (!isAuthority(end) || ok && (strings.Contains(end, "[") || net.ParseIP(end) != nil)) {
		v.found(at+".authority", strictyaml.Quote(a), "a host, or host:port, as clients name it, or *. and the end of a host: without a scheme")
	}
	if l := m.Listener; l != "" && !slices.ContainsFunc(v.c.Listeners, func(x Listener) bool { return x.Name == l }) && !v.c.text.Broken("listeners") {
		var names []string
		for _, x := range v.c.Listeners {
			if x.Name != "" {
				names = append(names, x.Name)
			}
		}
		p := Problem{Message: "there is no listener with the name " + strictyaml.Quote(l), DidYouMean: strictyaml.Suggest(l, names)}
		if p.DidYouMean == "" && len(names) > 0 {
			p.Expected = "one of " + strings.Join(names, ", ")
		} else if len(names) == 0 {
			p.Hint = "give the listener a name"
		}
		v.add(at+".listener", p)
	}
	return len(v.problems) == before
}

// shares looks at where a route sends its calls.
func (v *validation) shares(at string, r *Route) {
	switch {
	case r.Backend != "" && r.Backends != nil:
		v.add(at+".backend", Problem{Message: "is set, and backends too", Hint: "keep one of them"})
		return
	case r.Backends != nil && len(r.Backends) == 0:
		v.add(at+".backends", Problem{Message: "there is none", Expected: "a list of name and weight"})
		return
	case r.Backend == "" && r.Backends == nil:
		if len(v.c.Backends) > 1 {
			v.required(at+".backend", "the name of one of the backends, or backends: a list of name and weight")
		}
		return
	case r.Backend != "":
		v.knownBackend(at+".backend", r.Backend)
		return
	}
	sum := 0
	first := map[string]string{}
	for i, s := range r.Backends {
		share := fmt.Sprintf("%s.backends[%d]", at, i)
		if s.Name == "" {
			v.required(share+".name", "the name of one of the backends")
		} else if v.knownBackend(share+".name", s.Name) {
			v.unique(first, share+".name", s.Name)
		}
		if v.count(share+".weight", s.Weight, 0, maxWeight) {
			sum += s.Weight
		}
	}
	if sum == 0 {
		v.add(at+".backends", Problem{Message: "has only weights of 0", Expected: "a weight of 1 or more for at least one of them"})
	}
}

func (v *validation) knownBackend(at, name string) bool {
	if v.known[name] {
		return true
	}
	if v.c.text.Broken("backends") {
		return false // perhaps that is the one
	}
	known := slices.Sorted(maps.Keys(v.known))
	p := Problem{Message: "there is no backend " + strictyaml.Quote(name), DidYouMean: strictyaml.Suggest(name, known)}
	if p.DidYouMean == "" && len(known) > 0 && len(known) <= 12 {
		p.Expected = "one of " + strings.Join(known, ", ")
	}
	v.add(at, p)
	return false
}

func (v *validation) retry(at string, r *Route) {
	y := r.Retry
	v.count(at+".attempts", y.Attempts, 1, maxAttempts)
	if y.Attempts > 1 && len(y.On) == 0 {
		v.required(at+".on", "at least one status, as there is more than one attempt")
	}
	seen := map[Code]bool{}
	for i, code := range y.On {
		item := fmt.Sprintf("%s.on[%d]", at, i)
		if code == Code(codes.OK) {
			v.add(item, Problem{Message: "is OK, which is not a failure", Hint: "take it away"})
		} else if seen[code] {
			v.add(item, Problem{Message: fmt.Sprintf("%s is there twice", code), Hint: "keep one of them"})
		}
		seen[code] = true
	}
	if v.duration(at+".backoff.base", y.Backoff.Base, maxDuration) && v.duration(at+".backoff.max", y.Backoff.Max, maxDuration) && y.Backoff.Max < y.Backoff.Base {
		v.found(at+".backoff.max", short(y.Backoff.Max), fmt.Sprintf("base (%s) or more", short(y.Backoff.Base)))
	}
	if v.durationOr0(at+".perTryTimeout", y.PerTryTimeout, maxDuration) && r.Timeout > 0 && y.PerTryTimeout > r.Timeout {
		v.found(at+".perTryTimeout", short(y.PerTryTimeout), fmt.Sprintf("at most the timeout of the route (%s)", short(r.Timeout)))
	}
	v.size(at+".bufferBytes", y.BufferBytes, 0, maxBuffer)
}

// unique reports a name that an earlier field has too.
func (v *validation) unique(first map[string]string, at, name string) {
	if before, twice := first[name]; twice {
		v.add(at, Problem{Message: fmt.Sprintf("%s is the name of %s%s too", strictyaml.Quote(name), parent(before), v.line(before)), Hint: "give each one its own"})
		return
	}
	first[name] = at
}

// line is where a field was written, for a sentence.
func (v *validation) line(path string) string {
	if line, _ := v.c.text.Position(path); line > 0 {
		return fmt.Sprintf(" (line %d)", line)
	}
	return ""
}

// parent of a field; a flag is its own.
func parent(path string) string {
	if i := strings.LastIndexByte(path, '.'); i >= 0 {
		return path[:i]
	}
	return path
}

func (v *validation) required(at, expected string) {
	v.add(at, Problem{Message: "is missing", Expected: expected})
}

func (v *validation) found(at, value, expected string) {
	v.add(at, Problem{Message: "is " + value, Expected: expected})
}

func (v *validation) duration(at string, d, most time.Duration) bool {
	if d < time.Millisecond || d > most {
		v.found(at, short(d), fmt.Sprintf("from 1ms to %s", short(most)))
		return false
	}
	return true
}

func (v *validation) durationOr0(at string, d, most time.Duration) bool {
	if d == 0 {
		return true
	}
	if d < time.Millisecond || d > most {
		v.found(at, short(d), fmt.Sprintf("0, or from 1ms to %s", short(most)))
		return false
	}
	return true
}

func (v *validation) count(at string, n, least, most int) bool {
	if n < least || n > most {
		v.found(at, strconv.Itoa(n), fmt.Sprintf("a whole number from %d to %d", least, most))
		return false
	}
	return true
}

func (v *validation) number(at string, x, least, most float64) bool {
	if x < least || x > most || x != x {
		v.found(at, decimal(x), "a number from "+decimal(least)+" to "+decimal(most))
		return false
	}
	return true
}

func (v *validation) size(at string, b, least, most Bytes) bool {
	if b < least || b > most {
		expected := fmt.Sprintf("from %s to %s", least, most)
		if most == math.MaxInt64 {
			expected = fmt.Sprintf("%s or more", least)
		}
		v.found(at, b.String(), expected)
		return false
	}
	return true
}

func decimal(x float64) string { return strconv.FormatFloat(x, 'f', -1, 64) }

// short is a duration without its units of 0: 5m and not 5m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// isName says whether s can be a part of a path: gRPC does not ask for more, though protobuf does.
func isName(s string) bool {
	return s != "" && len(s) <= 1000 && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == '*' }) < 0
}

func isBackendName(s string) bool {
	return len(s) <= 63 && strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.", r)
	}) < 0
}
