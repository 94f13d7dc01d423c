package config

import (
	"strings"
	"time"

	"github.com/levada-io/levada/internal/strictyaml"
)

// Config is everything that a user can tell the proxy. Parse, Load, Default and Simple.Config make one; the zero value is not useful.
//
// Each duration and number that may be 0 says what 0 means. All of a connection's or stream's numbers count for each one by itself.
type Config struct {
	// Listeners are where clients connect. All of them serve the routes that do not name one.
	Listeners []Listener `yaml:"listeners"`
	Admin     Admin      `yaml:"admin"`
	Drain     Drain      `yaml:"drain"`
	AccessLog AccessLog  `yaml:"accessLog"`
	Metrics   Metrics    `yaml:"metrics"`
	Tracing   Tracing    `yaml:"tracing"`
	Limits    Limits     `yaml:"limits"`
	Backends  []Backend  `yaml:"backends"`
	// Routes say what goes to which backend and under which conditions; see Table for which of them wins. Complete adds the one that
	// sends everything to the only backend.
	Routes []Route `yaml:"routes,omitempty"`

	// text knows where each field was written. It is nil for a configuration that was not read.
	text *strictyaml.Document
	// flags are the names of fields that were set by flags.
	flags map[string]string
}

// Listener is an address that clients connect to.
type Listener struct {
	// Name by which routes are for this listener alone. It may be empty.
	Name string `yaml:"name,omitempty"`
	// Address is host:port, unix:PATH, or systemd:NAME for a socket that was passed to the process. An empty host is all addresses of the machine; port 0 is any free one.
	Address string `yaml:"address" expected:"host:port, such as :8080, or unix:PATH"`
	// Mode are the permissions of a Unix socket.
	Mode FileMode `yaml:"mode"`
	// ReusePort lets a new process listen at the address while this one still does (SO_REUSEPORT), and its clients move to it when this one drains.
	ReusePort bool `yaml:"reusePort"`
	// TLS of the listener; without it HTTP/2 is spoken in clear text, with prior knowledge.
	TLS *ListenerTLS `yaml:"tls,omitempty"`
	// MaxConnections that are open at the same time; 0 is no limit. Those above it wait in the kernel's queue.
	MaxConnections int `yaml:"maxConnections"`
	// MaxStreams that a connection may have open at the same time (SETTINGS_MAX_CONCURRENT_STREAMS). Further calls wait in the client's library.
	MaxStreams int `yaml:"maxStreams"`
	// MaxHeaderBytes of a request, counted as HTTP/2 does: 32 bytes for each field on top of its name and value.
	MaxHeaderBytes Bytes `yaml:"maxHeaderBytes"`
	// HandshakeTimeout is how long a new connection may take for TLS and the preface of HTTP/2.
	HandshakeTimeout time.Duration `yaml:"handshakeTimeout"`
	// IdleTimeout is how long a connection without streams stays open; 0 is no timeout.
	IdleTimeout time.Duration `yaml:"idleTimeout"`
	// StallTimeout is how long a client may take nothing although something is there for it. Then the stream ends with UNAVAILABLE, or the
	// connection is closed if its socket takes nothing. 0 is no limit.
	StallTimeout time.Duration `yaml:"stallTimeout"`
	// Keepalive detects clients that are gone without closing their connection.
	Keepalive Keepalive `yaml:"keepalive"`
	// Forwarded is what endpoints learn of clients, where the route does not say it.
	Forwarded Forwarded `yaml:"forwarded"`
	// Abuse bounds what a connection may send that carries nothing.
	Abuse Abuse `yaml:"abuse"`
}

// Abuse is the budget of a connection for frames that carry nothing and streams that were opened for nothing. Calls that reached a backend never
// cost any of it, however they end. While the budget is used up, new calls of the connection are refused with RESOURCE_EXHAUSTED; a connection that
// goes on until it has used twice the burst is closed.
type Abuse struct {
	// Burst is how many of them may come at once; 0 is no limit.
	Burst int `yaml:"burst"`
	// PerSecond is how many come back each second. What the connection is sent adds to it as well.
	PerSecond int `yaml:"perSecond"`
}

// Network is how a listener is reached, as package net calls it, and its address there: host:port of tcp, or the path of a unix socket; or systemd, and the name of a
// socket that was passed to the process.
func (l *Listener) Network() (network, address string) {
	if path, ok := unixPath(l.Address); ok {
		return "unix", path
	}
	if name, ok := strings.CutPrefix(l.Address, systemdScheme); ok {
		return "systemd", name
	}
	return "tcp", l.Address
}

// Keepalive is how a connection of a client is tested with HTTP/2 PING.
type Keepalive struct {
	// Interval of silence after which a PING is sent; 0 is never.
	Interval time.Duration `yaml:"interval"`
	// Timeout is how long the answer may take before the connection is closed. On Linux it stays open as long as the client's host
	// acknowledges what it is sent: the client is busy then, and not gone.
	Timeout time.Duration `yaml:"timeout"`
}

// ListenerTLS is the certificate that clients see. The files are read again when they change, which no connection notices.
type ListenerTLS struct {
	// Certificate and Key are PEM files: the chain, the leaf first, and its private key.
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	// Certificates for other names, which clients ask for by SNI. Each is for the names in it; Certificate is for all others.
	Certificates []CertificatePair `yaml:"certificates,omitempty"`
	// ClientCA is a PEM file with the authorities of clients' certificates. With it a client must have one.
	ClientCA string `yaml:"clientCA,omitempty"`
	// MinVersion that a client must speak.
	MinVersion TLSVersion `yaml:"minVersion"`
}

// CertificatePair is a certificate and its key.
type CertificatePair struct {
	// Certificate and Key are PEM files: the chain, the leaf first, and its private key.
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
}

// Admin is where metrics, probes and the state of the proxy are served, in clear text.
type Admin struct {
	// Address is host:port; empty is off. Metrics and probes are for every client that reaches it; the rest is for connections over the loopback interface, unless
	// Control is set.
	Address string `yaml:"address" expected:"host:port, such as 127.0.0.1:9901"`
	// Control is where the state, the tap and the drain are served in place of Address: unix:PATH or host:port.
	Control string `yaml:"control,omitempty" expected:"unix:PATH, or host:port such as 127.0.0.1:9902"`
	// TokenFile holds the token that they need then. A Control that other machines can reach needs one.
	TokenFile string `yaml:"tokenFile,omitempty"`
}

// Drain is how the proxy stops.
type Drain struct {
	// Period over which the open streams are ended, one by one. 0 ends them all at once.
	Period time.Duration `yaml:"period"`
	// Notice is how long /readyz fails before the listeners close, for balancers that need time to see it. It comes before Period.
	Notice time.Duration `yaml:"notice"`
}

// AccessLog is a line of JSON for each call.
type AccessLog struct {
	// Path of the file that is appended to; - is the standard output, empty is off.
	Path string `yaml:"path"`
}

// Metrics says which methods are counted by themselves.
type Metrics struct {
	// Methods that get a value of the label method, beside those that routes name: shop.Orders/Watch, or the beginning of names with a star, as shop.Orders/* and
	// shop.*. All others are counted as "other".
	Methods []string `yaml:"methods,omitempty"`
	// MaxMethods that the stars may add. A method is added when a call of it has succeeded.
	MaxMethods int `yaml:"maxMethods"`
}

// Tracing with OpenTelemetry. The exporter is configured by the OTEL_* variables; without them nothing is sent.
type Tracing struct {
	// Sample is the share of calls without a decision of their client that are traced, 0 to 1.
	Sample float64 `yaml:"sample"`
}

// Limits of the process.
type Limits struct {
	// Memory that messages on their way may take together. 0 is a quarter of the process' limit (GOMEMLIMIT or that of its container).
	Memory Bytes `yaml:"memory"`
}

// Backend is a service that calls are sent to, by as many endpoints as its target has.
type Backend struct {
	// Name is what routes and metrics call it.
	Name string `yaml:"name"`
	// Target says where its endpoints are; see package discovery.
	Target string `yaml:"target"`
	// TLS to the endpoints; without it HTTP/2 is spoken in clear text, with prior knowledge.
	TLS *BackendTLS `yaml:"tls,omitempty"`
	// ConnectTimeout for TCP, TLS and the first SETTINGS together; an endpoint that is the only one may take 10 s for its SETTINGS.
	ConnectTimeout time.Duration `yaml:"connectTimeout"`
	// Ping detects endpoints that are gone without closing their connection.
	Ping Ping `yaml:"ping"`
	// MaxResponseHeaderBytes of a header or of trailers that an endpoint sends, counted as HTTP/2 does. Above it, or above what the client takes,
	// trailers keep their status and lose the rest; a response's header ends the call with RESOURCE_EXHAUSTED.
	MaxResponseHeaderBytes Bytes `yaml:"maxResponseHeaderBytes"`
	// MaxConnections to one endpoint. 0 is as many as its MAX_CONCURRENT_STREAMS makes needed, and another one for calls with large headers.
	MaxConnections int      `yaml:"maxConnections"`
	Balance        Balance  `yaml:"balance"`
	Ejection       Ejection `yaml:"ejection"`
	// HealthCheck asks endpoints how they are.
	HealthCheck HealthCheck `yaml:"healthCheck"`
	// Limits of the calls that are open at the same time.
	Limits CallLimits `yaml:"limits"`
	// WaitForReady is how long a call waits while no endpoint is known, before it gets UNAVAILABLE. When connecting to those that are known
	// fails, the call is answered at once. 0 never waits.
	WaitForReady time.Duration `yaml:"waitForReady"`
}

// BackendTLS is how endpoints are verified, and what they see of us. That it is there turns TLS on. The files are read again when they change.
type BackendTLS struct {
	// CA is a PEM file with the authorities of the endpoints' certificates; empty is those of the system.
	CA string `yaml:"ca,omitempty"`
	// Certificate and Key are PEM files for endpoints that ask who we are.
	Certificate string `yaml:"certificate,omitempty"`
	Key         string `yaml:"key,omitempty"`
	// ServerName that the certificate must be for, and that is sent as SNI; empty is the host of the target.
	ServerName string `yaml:"serverName,omitempty"`
}

// Ping is how connections to endpoints are tested with HTTP/2 PING while streams are open on them.
type Ping struct {
	// Interval of silence after which a PING is sent; 0 is never.
	Interval time.Duration `yaml:"interval"`
	// Timeout is how long the answer may take. Then the connection is lost, and its streams get UNAVAILABLE.
	Timeout time.Duration `yaml:"timeout"`
	// Gentle sends at most two in a silence of the endpoint with less than 5 minutes between them, since gRPC servers close connections
	// that ping more often than that.
	Gentle bool `yaml:"gentle"`
}

// HealthCheck asks each endpoint by grpc.health.v1.Health/Check, over a connection of its own. One that is not healthy gets no new calls, unless all are not; calls that
// are open there go on. An endpoint without the service counts as healthy as long as it answers.
type HealthCheck struct {
	// Interval between two checks, give or take a tenth; 0 is never.
	Interval time.Duration `yaml:"interval"`
	// Timeout of a check, connecting included.
	Timeout time.Duration `yaml:"timeout"`
	// Service to ask for; empty is the server as a whole.
	Service string `yaml:"service,omitempty"`
	// UnhealthyThreshold of checks in a row without an answer or with an error. That the server says NOT_SERVING counts at once, and so does the first check.
	UnhealthyThreshold int `yaml:"unhealthyThreshold"`
	// HealthyThreshold of checks in a row that succeed.
	HealthyThreshold int `yaml:"healthyThreshold"`
}

// CallLimits protect endpoints from more calls than they can serve.
type CallLimits struct {
	// CallsPerEndpoint that are open at the same time; 0 is no limit.
	CallsPerEndpoint int `yaml:"callsPerEndpoint"`
	// Waiting calls that there may be while all endpoints have as many as they may. Those above it get UNAVAILABLE with the reason OVERLOADED. 0 waits never.
	Waiting int `yaml:"waiting"`
	// WaitTimeout is how long a call may wait.
	WaitTimeout time.Duration `yaml:"waitTimeout"`
}

// RoutePing is how connections to endpoints are tested while calls of a route are open on them.
type RoutePing struct {
	// Interval of silence after which a PING is sent, however many there were; 0 leaves it to the backend's Ping.
	Interval time.Duration `yaml:"interval"`
	// Timeout is how long the answer may take.
	Timeout time.Duration `yaml:"timeout"`
}

// Balance is how an endpoint is chosen for a stream.
type Balance struct {
	// SlowStart is the time over which an endpoint that appeared is brought to its full share; 0 gives it at once.
	SlowStart time.Duration `yaml:"slowStart"`
	// Decay is how long a slow answer is held against an endpoint: after this time 1/e of it is left in the moving average.
	Decay time.Duration `yaml:"decay"`
}

// Ejection is when an endpoint that answers with failures gets no calls for a while.
type Ejection struct {
	// ConsecutiveFailures eject; 0 does not look at them.
	ConsecutiveFailures int `yaml:"consecutiveFailures"`
	// FailureShare of the calls in Window ejects, once there were MinRequests; 0 does not look at it.
	FailureShare float64       `yaml:"failureShare"`
	MinRequests  int           `yaml:"minRequests"`
	Window       time.Duration `yaml:"window"`
	// BaseTime of the first ejection. Each that follows takes twice as long as the one before, up to MaxTime.
	BaseTime time.Duration `yaml:"baseTime"`
	MaxTime  time.Duration `yaml:"maxTime"`
	// MaxEjected is the share of the endpoints that may be ejected at the same time.
	MaxEjected float64 `yaml:"maxEjected"`
	// PanicThreshold is the share of endpoints that must be usable. Below it ejection is ignored and all of them are used: when everything
	// fails, the endpoints are not what is wrong. 0 never ignores it.
	PanicThreshold float64 `yaml:"panicThreshold"`
	// Disabled turns all of it off.
	Disabled bool `yaml:"disabled"`
}

// Route is what happens to the calls that match it.
type Route struct {
	Match Match `yaml:"match"`
	// Backend or Backends, not both: where the calls go. Neither is the only backend that there is.
	Backend  string  `yaml:"backend,omitempty"`
	Backends []Share `yaml:"backends,omitempty"`
	// Timeout of the whole call, from its headers to its status. The client's own deadline counts when it is earlier; 0 is only that.
	Timeout time.Duration `yaml:"timeout"`
	// Ping finds endpoints that hang under idle streams of this route within Interval and Timeout. The servers must allow so many PINGs.
	Ping RoutePing `yaml:"ping"`
	// IdleTimeout ends a call on which no message went either way for this long; 0 is never.
	IdleTimeout time.Duration `yaml:"idleTimeout"`
	// StreamAge ends a call that lives longer with UNAVAILABLE, between two messages; 0 is never.
	StreamAge time.Duration `yaml:"streamAge"`
	// StreamAgeJitter is the share by which the age of each stream is made longer or shorter by chance, so that streams that were opened
	// together do not end together.
	StreamAgeJitter float64     `yaml:"streamAgeJitter"`
	Retry           Retry       `yaml:"retry"`
	RetryBudget     RetryBudget `yaml:"retryBudget"`
	// MaxMessageBytes ends calls with a larger message with RESOURCE_EXHAUSTED.
	MaxMessageBytes MaxMessageBytes `yaml:"maxMessageBytes"`
	// HoldBytes is the size up to which a message is forwarded only when all of it is there, so that a call can be ended well at any time.
	// Larger ones are passed on as they come, and so are those above 64 KiB while more than half of Limits.Memory is in use, or 16 MiB
	// for this client's connection. 0 holds nothing.
	HoldBytes Bytes     `yaml:"holdBytes"`
	RateLimit RateLimit `yaml:"rateLimit"`
	// RestoreUnavailable turns what other proxies behind this one made of a lost connection back into UNAVAILABLE.
	RestoreUnavailable bool `yaml:"restoreUnavailable"`
	// Forwarded is what endpoints learn of clients; nil is what the listener says.
	Forwarded *Forwarded `yaml:"forwarded,omitempty"`
	// Headers that are changed on the way.
	Headers Headers `yaml:"headers"`
}

// Match is which calls a route is for. What is empty matches everything.
type Match struct {
	// Service is a full name, shop.Orders, or a prefix of names, shop.*
	Service string `yaml:"service,omitempty"`
	// Method of the service, which must be a full name.
	Method string `yaml:"method,omitempty"`
	// Authority that the client called, in any case: a host, or *. and the end of one. Without a port it matches all ports.
	Authority string `yaml:"authority,omitempty"`
	// Listener is the name of the one at which the call came.
	Listener string `yaml:"listener,omitempty"`
}

// Share is a backend that gets a part of a route's calls.
type Share struct {
	Name string `yaml:"name"`
	// Weight of this backend; its part is Weight of the sum of all.
	Weight int `yaml:"weight"`
}

// Retry is which failed calls are tried again, beyond those that the backend provably did not process: these always are, once.
type Retry struct {
	// Attempts in all, the first one included: 1 is no retry.
	Attempts int `yaml:"attempts"`
	// On are the statuses that are tried again, when they came before any response.
	On      []Code  `yaml:"on"`
	Backoff Backoff `yaml:"backoff"`
	// PerTryTimeout is how long an attempt that another one may follow may take for its response headers; 0 is as long as the call may take, which the last
	// attempt has in any case.
	PerTryTimeout time.Duration `yaml:"perTryTimeout"`
	// BufferBytes of the request that are kept to be sent again. A call that sent more is not tried again.
	BufferBytes Bytes `yaml:"bufferBytes"`
}

// Backoff before an attempt: a random time up to Base, twice that for each further attempt, up to Max.
type Backoff struct {
	Base time.Duration `yaml:"base"`
	Max  time.Duration `yaml:"max"`
}

// RetryBudget bounds what retries add to the load of a backend that is in trouble.
type RetryBudget struct {
	// Ratio is how many retries each call adds to what may be retried.
	Ratio float64 `yaml:"ratio"`
	// MinPerSecond retries are possible in any case, so that a route with few calls can retry at all.
	MinPerSecond float64 `yaml:"minPerSecond"`
}

// MaxMessageBytes of each message, as the five bytes in front of it say; 0 is no limit.
type MaxMessageBytes struct {
	Request  Bytes `yaml:"request"`
	Response Bytes `yaml:"response"`
}

// RateLimit refuses calls with RESOURCE_EXHAUSTED.
type RateLimit struct {
	// PerSecond calls pass in the long run; 0 is no limit.
	PerSecond float64 `yaml:"perSecond"`
	// Burst of calls that may come at once. 0 is as many as come in a second, which Complete fills in.
	Burst int `yaml:"burst"`
}

// Shares are the backends of the route, whichever way they were written.
func (r *Route) Shares() []Share {
	if len(r.Backends) > 0 {
		return r.Backends
	}
	return []Share{{Name: r.Backend, Weight: 1}}
}

// String is the match in short, as metrics and logs name the route: shop.Orders/Watch, shop.Orders, shop.*, or * for everything, and @ with the
// authority behind it where there is one, and the listener.
func (m Match) String() string {
	s := m.Service
	switch {
	case s == "":
		s = "*"
	case m.Method != "":
		s += "/" + m.Method
	}
	if m.Authority != "" {
		s += "@" + m.Authority
	}
	if m.Listener != "" {
		s += " via " + m.Listener
	}
	return s
}
