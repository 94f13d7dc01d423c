package sdk

import (
	"cmp"
	"fmt"
	"os"
	"strconv"
	"time"
)

// Environment variables that a function understands.
const (
	// envSocketDir is where the socket and the server-info file go.
	envSocketDir = "LEVADA_SOCKET_DIR"
	// envConcurrency is how many calls of user code may run at once.
	envConcurrency = "LEVADA_CONCURRENCY"
	// envAnnounceFile is where calls of user code are announced.
	envAnnounceFile = "LEVADA_ANNOUNCE_FILE"
	// envContainerType is the role of this container: it names a sink's socket, and is quoted in errors.
	envContainerType = "NUMAFLOW_UD_CONTAINER_TYPE"
	// envReplica is the default partition of a source.
	envReplica = "NUMAFLOW_REPLICA"
)

const (
	defaultSocketDir = "/var/run/numaflow"
	// defaultMaxMessageSize is what Numaflow's platform sends and accepts unless told otherwise.
	defaultMaxMessageSize = 64 << 20
	// defaultGrace is well below the 30 s that Kubernetes gives a container.
	defaultGrace = 20 * time.Second
	// defaultConcurrency is Numaflow's default number of messages in flight.
	defaultConcurrency = 500
)

// An Option changes how a function is served.
type Option func(*options)

type options struct {
	dir            string
	maxMessageSize int
	grace          time.Duration
	concurrency    int
	noBlocks       bool
}

// WithSocketDir puts the socket and the server-info file into this directory.
// By default it is LEVADA_SOCKET_DIR, or else /var/run/numaflow.
func WithSocketDir(dir string) Option { return func(o *options) { o.dir = dir } }

// WithMaxMessageSize bounds a gRPC message, each way. The default, 64 MiB, is the platform's.
func WithMaxMessageSize(bytes int) Option { return func(o *options) { o.maxMessageSize = bytes } }

// WithGrace bounds how long a stopping server waits for the platform to close its streams, and for user code to return.
// The default is 20 s.
func WithGrace(d time.Duration) Option { return func(o *options) { o.grace = d } }

// WithConcurrency bounds how many calls of user code run at once, up to 1024. By default it is LEVADA_CONCURRENCY, or else 500.
// Quick user code runs on few goroutines whatever the bound: more are added only when calls turn out to be slow.
// 1 makes calls strictly one after the other.
func WithConcurrency(n int) Option { return func(o *options) { o.concurrency = n } }

// WithoutBlocks serves a unary map by the Numaflow contract alone.
func WithoutBlocks() Option { return func(o *options) { o.noBlocks = true } }

func newOptions(given []Option) (options, error) {
	o := options{
		dir:            cmp.Or(os.Getenv(envSocketDir), defaultSocketDir),
		maxMessageSize: defaultMaxMessageSize,
		grace:          defaultGrace,
		concurrency:    defaultConcurrency,
	}
	if text := os.Getenv(envConcurrency); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return o, fmt.Errorf("sdk: %s=%q is not a number", envConcurrency, text)
		}
		o.concurrency = n
	}
	for _, option := range given {
		option(&o)
	}
	if o.concurrency < 1 || o.concurrency > announceSlots {
		return o, fmt.Errorf("sdk: concurrency %d is not between 1 and %d", o.concurrency, announceSlots)
	}
	if o.maxMessageSize < 1 {
		return o, fmt.Errorf("sdk: maximum message size %d is not positive", o.maxMessageSize)
	}
	return o, nil
}
