package config

import (
	"crypto/tls"
	"math"
	"time"

	"google.golang.org/grpc/codes"
)

// Default is the configuration of an empty file: a listener, and nothing behind it yet.
func Default() *Config {
	c := &Config{}
	c.SetDefaults()
	return c
}

// SetDefaults makes c what Default gives.
func (c *Config) SetDefaults() {
	var l Listener
	l.SetDefaults()
	// Only this machine, because nothing is encrypted by default.
	l.Address = "127.0.0.1:8080"
	*c = Config{
		Listeners: []Listener{l},
		// Only this machine. Metrics and probes may be public; the rest is for this machine at any address.
		Admin: Admin{Address: "127.0.0.1:9901"},
		// At 10,000 streams 333 are opened again each second, which their servers do not notice. What stops the process must wait for longer:
		// Kubernetes' terminationGracePeriodSeconds, which is 30 by itself, has to be raised.
		Drain: Drain{Period: 30 * time.Second},
		// Each is some 40 series for each backend of its route: a hundred are what a server of metrics does not notice.
		Metrics: Metrics{MaxMethods: 100},
		// One in a hundred shows what is slow, and costs nothing that could be measured.
		Tracing: Tracing{Sample: 0.01},
	}
}

// SetDefaults fills in everything but the address.
func (l *Listener) SetDefaults() {
	*l = Listener{
		// A client's library keeps calls above it waiting silently until their deadline, so it is out of the way of clients that mean
		// well: grpc-go's server has no limit. An idle stream takes 2 KB, and limits.memory bounds what all of them may hold.
		MaxStreams: 100_000,
		// grpc-go's is 16 MiB, its clients stay below 8 KiB nearly always; 64 KiB leaves room for large tokens, and is what a
		// connection can make us keep before anybody was authenticated.
		MaxHeaderBytes: 64 << 10,
		// Ten round trips of a second. A peer that connects and says nothing holds a descriptor for no longer.
		HandshakeTimeout: 10 * time.Second,
		// A connection costs some KB. An hour is beyond what clients keep one for without use (grpc-go: 30 minutes).
		IdleTimeout: time.Hour,
		// A client that works on a message for a minute is slow, and not wrong. What it can make us keep is bounded by windows and limits.memory.
		StallTimeout: 0,
		// The interval is below the idle timeouts of NATs and cloud balancers (60 s and more); the timeout is gRPC's.
		Keepalive: Keepalive{Interval: 30 * time.Second, Timeout: 20 * time.Second},
		// A frame without content costs us a tenth of a microsecond to one, so a connection gets at most a thousandth of a processor. Clients send
		// some dozens a second.
		Abuse: Abuse{Burst: 10_000, PerSecond: 1000},
	}
	l.Forwarded.SetDefaults()
	l.Mode = defaultMode
}

// defaultMode lets the user and the group of the process connect.
const defaultMode FileMode = 0o660

// SetDefaults fills in everything but the files.
func (t *ListenerTLS) SetDefaults() {
	// What HTTP/2 demands; all gRPC clients speak it.
	*t = ListenerTLS{MinVersion: tls.VersionTLS12}
}

// SetDefaults fills in everything but the name and the target.
func (b *Backend) SetDefaults() {
	*b = Backend{
		// A TCP SYN that was lost is sent again after a second: who did not answer the first one is slow enough to try another.
		ConnectTimeout: time.Second,
		// What grpc-go's clients take unless they say something else.
		MaxResponseHeaderBytes: 16 << 20,
		// An endpoint that vanished is noticed in 10 s, and not at the client's deadline. Gentle, because a gRPC server answers the third
		// PING within 5 minutes without data with GOAWAY (too_many_pings), unless it was configured otherwise.
		Ping: Ping{Interval: 5 * time.Second, Timeout: 5 * time.Second, Gentle: true},
		// Decay as in Finagle and linkerd: long enough for a mean, short enough to forget a pause of a garbage collector.
		Balance: Balance{Decay: 10 * time.Second},
		Ejection: Ejection{
			// Five in a row are no accident at failure rates of up to 10 % (1 in 100,000).
			ConsecutiveFailures: 5,
			// Beyond what a rollout or a bad client causes; 20 calls in 10 s, so that two failures of three calls say nothing.
			FailureShare: 0.4, MinRequests: 20, Window: 10 * time.Second,
			// Long enough for a restart, and at most 5 minutes, so that what was repaired comes back without a person.
			BaseTime: 10 * time.Second, MaxTime: 5 * time.Minute,
			// Half of the endpoints must carry the load of all; less would bring them down too.
			MaxEjected: 0.5, PanicThreshold: 0.5,
		},
		// Two lost packets are no failure of three checks, and NOT_SERVING counts at once.
		HealthCheck: HealthCheck{Timeout: time.Second, UnhealthyThreshold: 3, HealthyThreshold: 2},
		// As long as for an endpoint that is to appear.
		Limits: CallLimits{WaitTimeout: 3 * time.Second},
		// Outlasts a pod that restarts quickly or a slow DNS answer, and stays below the deadlines that clients usually set.
		WaitForReady: 3 * time.Second,
	}
}

// SetDefaults fills in everything but the match and the backend.
func (r *Route) SetDefaults() {
	*r = Route{
		// A proxy ends nobody's stream unasked.
		StreamAge: 0,
		// As for a backend. The interval is for who knows that the servers allow it.
		Ping: RoutePing{Timeout: 5 * time.Second},
		// With an age of half an hour, streams that were opened in the same second end over 6 minutes.
		StreamAgeJitter: 0.1,
		Retry: Retry{
			// No retry: only the user knows what may happen twice.
			Attempts: 1,
			// What says that the server did not get to it, or has no room now.
			On: []Code{Code(codes.Unavailable), Code(codes.ResourceExhausted)},
			// As in linkerd and Envoy: above a round trip, and invisible beside a deadline of a second.
			Backoff: Backoff{Base: 25 * time.Millisecond, Max: 250 * time.Millisecond},
			// Nearly all unary requests fit. It is kept for each open call that has no response yet.
			BufferBytes: 64 << 10,
		},
		// As in Finagle and linkerd: a backend that fails gets at most a fifth more calls for it.
		RetryBudget: RetryBudget{Ratio: 0.2, MinPerSecond: 10},
		HoldBytes:   defaultHold,
	}
}

// defaultHold is the largest message that gRPC's clients take by default.
const defaultHold = 4 << 20

// SetDefaults gives each backend the same part.
func (s *Share) SetDefaults() { *s = Share{Weight: 1} }

// Complete fills in what follows from other fields: the route to the only backend, the backend of routes that name none, and the bursts of
// rate limits. Parse, Load and Simple.Config have done it; who builds a configuration by hand calls it. It can be repeated.
func (c *Config) Complete() {
	if len(c.Backends) == 1 && len(c.Routes) == 0 {
		var r Route
		r.SetDefaults()
		c.Routes = []Route{r}
	}
	for i := range c.Routes {
		r := &c.Routes[i]
		if r.Backend == "" && len(r.Backends) == 0 && len(c.Backends) == 1 {
			r.Backend = c.Backends[0].Name
		}
		if r.RateLimit.Burst == 0 && r.RateLimit.PerSecond > 0 {
			r.RateLimit.Burst = int(math.Ceil(min(r.RateLimit.PerSecond, maxRate)))
		}
	}
}
