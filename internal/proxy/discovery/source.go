package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Source follows the endpoints of one target.
type Source interface {
	// Run calls update with the complete list of endpoints (host:port, sorted, each once), first as soon as it is known and then
	// whenever it has changed; the list may be empty. Update is called by one goroutine at a time, and owns the slice. Errors do not end
	// Run: see Status. It returns nil when ctx has ended, or an error when the target can never work. Nothing that it
	// started runs then. It is called once.
	Run(ctx context.Context, update func(endpoints []string)) error
	// Status is how the source does at the moment.
	Status() Status
	// String is the target.
	String() string
}

// Status of a source, for an admin page and metrics.
type Status struct {
	// Endpoints is how many the last list had.
	Endpoints int
	// Known: there was a list, even if it was empty.
	Known bool
	// Updated is when the list changed last.
	Updated time.Time
	// LastSuccess is when the list was confirmed last. A watch without events does not confirm anything.
	LastSuccess time.Time
	// LastError is what went wrong last, at LastErrorAt; Failing says that it has not been right since.
	LastError   error
	LastErrorAt time.Time
	Failing     bool
}

// Options of sources. The zero value has all defaults.
type Options struct {
	// Interval between two looks at a name, give or take a tenth. 0: 5 s.
	Interval time.Duration
	// Timeout of one look at a name. 0: 5 s.
	Timeout time.Duration
	// EmptyAfter is how many looks in succession must say that a name does not exist or has no addresses before the list is
	// emptied. One may be an accident of a name server that restarts; but to keep the list indefinitely would send calls to
	// addresses that belong to others by then. A name server that fails never empties the list. 0: 3.
	EmptyAfter int
	// Poll is how often a file is read. A change counts when a second read after a fifth of that time agrees, since a file that is not
	// replaced but written may be half written. 0: 250 ms.
	Poll time.Duration
	// Logger. Nil: slog.Default().
	Logger *slog.Logger
	// Resolver answers for dns:/// and dns+srv:///. Nil: net.DefaultResolver.
	Resolver Resolver
	// Kubernetes makes the source of a kubernetes:/// target: kubernetes.New of the package below this one. Nil: such targets are
	// refused. It is injected so that a program that does without is built without Kubernetes' client.
	Kubernetes func(Service, Options) (Source, error)
}

// Resolver is what is needed of a *net.Resolver.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
}

// Doubter is a Source that asks from time to time and can do so before it would. Others are notified of changes.
type Doubter interface {
	// Doubt says that an endpoint of the list could not be connected to, or has gone. It returns at once.
	Doubt()
}

// Service is what a kubernetes:/// target names.
type Service struct {
	Namespace, Name string
	// Port is the number or name of a port of the Service.
	Port string
}

// String is the target.
func (s Service) String() string { return "kubernetes:///" + s.Namespace + "/" + s.Name + ":" + s.Port }

func (o Options) withDefaults() Options {
	o.Interval = cmp.Or(o.Interval, 5*time.Second)
	o.Timeout = cmp.Or(o.Timeout, 5*time.Second)
	o.EmptyAfter = cmp.Or(o.EmptyAfter, 3)
	o.Poll = cmp.Or(o.Poll, 250*time.Millisecond)
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if o.Resolver == nil {
		o.Resolver = net.DefaultResolver
	}
	return o
}

// What targets look like, for help and for errors.
const (
	Forms                  = always + ", file:///path or kubernetes:///namespace/service:port"
	FormsWithoutKubernetes = always + " or file:///path"

	always = "host:port[,host:port...], unix:PATH, dns:///host:port, dns+srv:///name"
)

// New returns the source of a target, which does nothing until Run. An error says what is wrong with the target.
func New(target string, o Options) (Source, error) {
	o = o.withDefaults()
	fail := func(format string, args ...any) (Source, error) {
		return nil, fmt.Errorf("target %q: "+format, append([]any{target}, args...)...)
	}
	scheme, rest, ok := strings.Cut(target, "://")
	if _, unix := strings.CutPrefix(target, unixScheme); !ok || unix {
		endpoints, err := parseStatic(target)
		if err != nil {
			return fail("%w; expected "+Forms, err)
		}
		return &static{target: target, endpoints: endpoints, tracker: NewTracker(target, o.Logger)}, nil
	}
	switch scheme {
	case "dns", "dns+srv", "file", "kubernetes":
	default:
		return fail("the scheme %q is not known: expected "+Forms, scheme)
	}
	authority, path, ok := strings.Cut(rest, "/")
	if !ok || authority != "" {
		return fail("what follows %s:// must begin with a third slash, as in %s", scheme, map[string]string{
			"dns": "dns:///host:port", "dns+srv": "dns+srv:///name", "file": "file:///path", "kubernetes": "kubernetes:///namespace/service:port"}[scheme])
	}
	switch scheme {
	case "dns":
		endpoint, err := ParseEndpoint(path)
		if err != nil {
			return fail("%w; expected dns:///host:port", err)
		}
		host, port, _ := net.SplitHostPort(endpoint)
		return newDNS(target, addresses(o.Resolver, host, port), o), nil
	case "dns+srv":
		if !isName(path) {
			return fail("%q is not a name of service records; expected dns+srv:///name, such as dns+srv:///_grpc._tcp.orders.example.com", path)
		}
		return newDNS(target, services(o.Resolver, path), o), nil
	case "file":
		if path == "" || strings.HasSuffix(path, "/") {
			return fail("the path of a file is missing; expected file:///path")
		}
		return &file{path: "/" + path, target: target, poll: o.Poll, tracker: NewTracker(target, o.Logger)}, nil
	default:
		service, err := parseService(path)
		if err != nil {
			return fail("%w; expected kubernetes:///namespace/service:port", err)
		}
		if o.Kubernetes == nil {
			return fail("this program was built without the client of Kubernetes; use dns:/// with a headless Service")
		}
		source, err := o.Kubernetes(service, o)
		if err != nil {
			return fail("%w", err)
		}
		return source, nil
	}
}

// ParseEndpoint checks host:port and returns it in the form in which equal ones are equal: names in lower case without the last dot, IPv6
// addresses compressed and in brackets.
func ParseEndpoint(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	switch {
	case s == "":
		return "", fmt.Errorf("there is not host:port")
	case strings.Contains(s, ","):
		return "", fmt.Errorf("%q is a list, and there can be only one host:port here", s)
	case err != nil && isIPv6(s):
		return "", fmt.Errorf("%q is not host:port: an IPv6 address must be in brackets, as in [::1]:9000", s)
	case err != nil && !strings.Contains(s, ":"):
		return "", fmt.Errorf("%q has no port, as in %s:9000", s, s)
	case err != nil:
		return "", fmt.Errorf("%q is not host:port", s)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return "", fmt.Errorf("the port %q of %q is not a number from 1 to 65535", port, s)
	}
	if address, err := netip.ParseAddr(host); err == nil {
		host = address.String()
	} else if strings.Contains(host, ":") || !isName(host) {
		return "", fmt.Errorf("%q of %q is neither a host name nor an IP address", host, s)
	} else {
		host = strings.ToLower(strings.TrimSuffix(host, "."))
	}
	return net.JoinHostPort(host, strconv.FormatUint(number, 10)), nil
}

// isIPv6 tells an address without brackets, with a port or without.
func isIPv6(s string) bool {
	if strings.Count(s, ":") < 2 {
		return false
	}
	_, whole := netip.ParseAddr(s)
	_, host := netip.ParseAddr(s[:strings.LastIndexByte(s, ':')])
	return whole == nil || host == nil
}

// isName says whether s could be the name of a host or service in the DNS.
func isName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(strings.ToLower(label), "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return !allNumbers(s)
}

// allNumbers tells what was meant as an IP address, as 10.0.0.256.
func allNumbers(s string) bool { return strings.Trim(s, "0123456789.") == "" }

func parseStatic(target string) ([]string, error) {
	var endpoints []string
	for part := range strings.SplitSeq(target, ",") {
		endpoint, err := parseAny(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		endpoints = append(endpoints, endpoint)
	}
	return endpoints, nil
}

const unixScheme = "unix:"

// parseAny is ParseEndpoint, or a Unix socket: unix:PATH, or unix:///PATH as gRPC also writes it.
func parseAny(s string) (string, error) {
	path, ok := strings.CutPrefix(s, unixScheme)
	if !ok {
		return ParseEndpoint(s)
	}
	if rest, absolute := strings.CutPrefix(path, "//"); absolute {
		if path = rest; !strings.HasPrefix(path, "/") {
			return "", fmt.Errorf("%q has no absolute path after unix://, as in unix:///run/orders.sock", s)
		}
	}
	if path == "" || strings.HasSuffix(path, "/") || strings.HasPrefix(path, "@") {
		return "", fmt.Errorf("%q has no path of a socket, as in unix:/run/orders.sock", s)
	}
	if len(path) > maxUnixPath {
		return "", fmt.Errorf("%q has a path of %d bytes, and a socket can have %d", s, len(path), maxUnixPath)
	}
	return unixScheme + path, nil
}

// maxUnixPath is the longest that the kernel takes.
const maxUnixPath = 107

// Dial is how to connect to an endpoint, as package net calls it.
func Dial(endpoint string) (network, address string) {
	if path, ok := strings.CutPrefix(endpoint, unixScheme); ok {
		return "unix", path
	}
	return "tcp", endpoint
}

func parseService(path string) (Service, error) {
	namespace, rest, slash := strings.Cut(path, "/")
	name, port, colon := strings.Cut(rest, ":")
	s := Service{Namespace: namespace, Name: name, Port: port}
	switch {
	case namespace == "" || !slash && strings.Contains(path, ":"):
		return s, errors.New("the namespace is missing")
	case !isLabel(namespace):
		return s, fmt.Errorf("%q is not a namespace name", namespace)
	case name == "":
		return s, errors.New("the service is missing")
	case !isLabel(name):
		return s, fmt.Errorf("%q is not a service name", name)
	case !colon || port == "":
		return s, fmt.Errorf("the port is missing")
	case allNumbers(port):
		if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
			return s, fmt.Errorf("the port %q is not a number from 1 to 65535", port)
		}
	case !isLabel(port):
		return s, fmt.Errorf("the port %q is neither a number nor the name of a port", port)
	}
	return s, nil
}

// isLabel says whether s could be the name of an object of Kubernetes that is also one in the DNS.
func isLabel(s string) bool {
	return len(s) <= 63 && !strings.Contains(s, ".") && !strings.ContainsAny(s, "_ABCDEFGHIJKLMNOPQRSTUVWXYZ") && s != "" &&
		s[0] != '-' && s[len(s)-1] != '-' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// static is a list that never changes.
type static struct {
	target    string
	endpoints []string
	tracker   *Tracker
}

func (s *static) Run(ctx context.Context, update func([]string)) error {
	s.tracker.Succeed(s.endpoints, update)
	<-ctx.Done()
	return nil
}

func (s *static) Status() Status { return s.tracker.Status() }
func (s *static) String() string { return s.target }

// Tracker is what every source does with what it finds: it tells of changes only, and remembers and logs errors. Succeed and Replace
// are called by one goroutine at a time; the others by anybody.
type Tracker struct {
	logger *slog.Logger
	last   []string

	mu     sync.Mutex
	status Status
}

// NewTracker returns one that logs with the name of the target.
func NewTracker(target string, logger *slog.Logger) *Tracker {
	return &Tracker{logger: logger.With("target", target)}
}

// Succeed notes a list of endpoints, in any order, and passes it on if it is another one than before.
func (t *Tracker) Succeed(endpoints []string, update func([]string)) {
	t.mu.Lock()
	failed := t.status.Failing
	t.status.LastSuccess, t.status.Failing = time.Now(), false
	t.mu.Unlock()
	if failed {
		t.logger.Info("endpoints can be found again")
	}
	t.Replace(endpoints, update)
}

// Replace is Succeed for a list that is the best to be had, though something failed: it says nothing of errors.
func (t *Tracker) Replace(endpoints []string, update func([]string)) {
	list := slices.Clone(endpoints)
	slices.Sort(list)
	list = slices.Compact(list)
	if t.Status().Known && slices.Equal(list, t.last) {
		return
	}
	t.last = list
	t.mu.Lock()
	t.status.Known, t.status.Endpoints, t.status.Updated = true, len(list), time.Now()
	t.mu.Unlock()
	t.logger.Debug("endpoints changed", "endpoints", len(list)) // who uses them says it
	update(slices.Clone(list))
}

// Fail notes that the endpoints could not be found or confirmed; the list stays. It logs the first of errors that are equal but for numbers,
// such as ports that differ with each try.
func (t *Tracker) Fail(err error) {
	t.mu.Lock()
	again := t.status.Failing && withoutNumbers(t.status.LastError) == withoutNumbers(err)
	t.status.LastError, t.status.LastErrorAt, t.status.Failing = err, time.Now(), true
	kept := t.status.Endpoints
	t.mu.Unlock()
	if !again {
		t.logger.Warn("endpoints could not be found or confirmed", "known", kept, "error", err)
	}
}

func withoutNumbers(err error) string {
	return strings.Map(func(r rune) rune {
		if '0' <= r && r <= '9' {
			return -1
		}
		return r
	}, err.Error())
}

// Status returns what is known.
func (t *Tracker) Status() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.status
}
