package jetstreambuffer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// chosenReplicas is how many replicas a stream gets that nobody gave a number for: the loss of a server stops nothing, and each further one costs a copy.
	chosenReplicas = 3
	// clusterForms is how long a cluster that was just started may say that it has too few servers, before it is believed.
	clusterForms = 5 * time.Second
)

// Choice is how many replicas a stream gets that is created and that nobody gave a number for: three, or one where the broker cannot keep three. It may be used concurrently.
type Choice struct {
	mu sync.Mutex
	// chosen is 0 before the first stream was created. It is 3 from the first time on that the broker kept three.
	chosen int
	// refused is when the broker had too few servers first.
	refused time.Time
	why     error
}

// Create calls create with the number of replicas to give a new stream: what was given, or what is chosen if that is 0. It calls it again with 1 if the broker cannot
// keep three. A nil Choice chooses 1. An error about servers that are not there may go away.
func (c *Choice) Create(ctx context.Context, given int, create func(replicas int) error) error {
	if given > 0 || c == nil {
		given = max(1, given)
		return ExplainLimit(explainReplicas(create(given), 0, given))
	}
	// Others wait for the first decision, so that one cluster that has too few servers is waited for once.
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.chosen != 1 {
		err := create(chosenReplicas)
		switch {
		case err == nil:
			c.chosen = chosenReplicas
			return nil
		case offline(err):
			// It is known, so that the stream gets three as soon as it answers. One copy now would stay one copy.
			return fmt.Errorf("%d replicas: a server of the cluster is offline; start it, or give --replicas 1 to begin with one copy: %w", chosenReplicas, err)
		case tooFewServers(err) && c.forming():
			return fmt.Errorf("%d replicas: the cluster may not have all its servers yet: %w", chosenReplicas, err)
		case !refusesReplicas(err):
			return ExplainLimit(err)
		}
		c.why = err
	}
	if err := create(1); err != nil {
		return ExplainLimit(err)
	}
	if c.chosen == 0 {
		c.chosen = 1
	}
	return nil
}

// forming reports whether a cluster without enough servers may have been started just now. mu is held.
func (c *Choice) forming() bool {
	if c.refused.IsZero() {
		c.refused = time.Now()
	}
	return c.chosen == 0 && time.Since(c.refused) < clusterForms
}

// Why is the answer of the broker that made Choice give a stream one replica; nil if no stream has one for that.
func (c *Choice) Why() error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why
}

// Error codes of the JetStream API about replicas.
const (
	codeNotClustered   = 10074 // replicas > 1 not supported in non-clustered mode
	codeNoPeers        = 10005 // no suitable peers for placement
	codeNoResources    = 10023 // insufficient resources
	codeTooManyReplica = 10052 // invalid configuration: so many replicas are never supported
	codeNoStorage      = 10047 // insufficient storage resources: replicas count against the limit of an account
	codeNoMemory       = 10028 // insufficient memory resources
	codeNoTier         = 10120 // the account has no limits for as many replicas
)

// Error codes of the JetStream API about limits, and about streams of others.
const (
	codeLimits       = 10002 // resource limits exceeded for account
	codeMaxConsumers = 10026 // maximum consumers limit reached
	codeMaxStreams   = 10027 // maximum number of streams reached
	codeNeedsBytes   = 10113 // account requires a stream config to have max bytes set
	codeOverlap      = 10065 // subjects overlap with an existing stream
)

// ExplainLimit says what to do about a limit that is reached.
func ExplainLimit(err error) error {
	hint := ""
	switch codeOf(err) {
	case codeMaxStreams:
		hint = "raise max_streams of the account, or remove streams that nobody needs (levada buffers list)"
	case codeMaxConsumers:
		hint = "raise max_consumers of the account"
	case codeLimits, codeNoStorage, codeNoMemory:
		hint = "raise max_file (max_mem for storage in memory) of the account and of the server, or make room"
	case codeNeedsBytes:
		hint = "allow streams without max_bytes in the account"
	case codeOverlap:
		hint = "a stream of somebody else takes the subjects of Levada's streams, levada_... Give Levada an account of its own, or change the subjects of that stream"
	default:
		return err
	}
	return fmt.Errorf("%w: %s", err, hint)
}

func codeOf(err error) jetstream.ErrorCode {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		return api.ErrorCode
	}
	return 0
}

// refusesReplicas reports whether a stream was refused for a reason that fewer replicas may not have.
func refusesReplicas(err error) bool {
	switch codeOf(err) {
	case codeNotClustered, codeNoPeers, codeNoResources, codeTooManyReplica, codeNoStorage, codeNoMemory, codeNoTier:
		return true
	}
	return false
}

func tooFewServers(err error) bool { return codeOf(err) == codeNoPeers }

// offline reports whether servers that the cluster knows do not answer: only the text of the error tells.
func offline(err error) bool {
	return tooFewServers(err) && strings.Contains(err.Error(), "peer offline")
}
