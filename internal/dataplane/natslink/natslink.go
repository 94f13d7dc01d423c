// Package natslink connects to NATS servers, waits for them, and says what is wrong with one that cannot be used.
package natslink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/retry"
	"github.com/levada-io/levada/internal/redact"
)

const (
	tellAfter = 3 * time.Second  // how long a wait may be before it is logged
	tellEvery = 30 * time.Second // and how often after that
	// connectFor is how long a server may take to come up before that is an error.
	connectFor = 30 * time.Second
	// enabledFor is how long a server may answer that it has no JetStream: one that is starting does.
	enabledFor = 5 * time.Second
)

// Link is a connection that reconnects indefinitely, and remembers what the server has refused.
type Link struct {
	Conn *nats.Conn
	// URL is where the server is, without credentials.
	URL    string
	denied atomic.Pointer[string]
	// told is true while another refusal is not logged: names of consumers and inboxes are random, so that each has a text of its own.
	told atomic.Bool
}

// needed is what a user must be allowed to do.
const needed = "give the user this permission. Levada publishes to $JS.API.> and to the streams' subjects, and subscribes to _INBOX.>"

// Advisories begins the subjects of what JetStream tells about streams. A user need not have the permission to subscribe to them, so a refusal is not remembered.
const Advisories = "$JS.EVENT.ADVISORY."

// ServerSettings is the subject that servers answer with their settings, if their system account exports it to the account of the user. A refusal is not remembered either.
const ServerSettings = "$SYS.REQ.SERVER.PING.JSZ"

// Dial connects, for at most 30 s. The options must not have an error handler.
func Dial(ctx context.Context, url string, log *slog.Logger, options ...nats.Option) (*Link, error) {
	l := &Link{URL: redact.Text(url)}
	options = append(options, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) && !strings.Contains(err.Error(), Advisories) && !strings.Contains(err.Error(), ServerSettings) {
			text := err.Error()
			if before := l.denied.Swap(&text); before == nil || (*before != text && l.told.CompareAndSwap(false, true)) {
				log.Error("NATS server refused a request for want of a permission", "url", l.URL, "error", err, "to change it", needed)
				time.AfterFunc(tellEvery, func() { l.told.Store(false) })
			}
		}
		log.Debug("nats connection", "url", l.URL, "error", err)
	}))
	tell := time.Now().Add(tellAfter)
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		conn, err := nats.Connect(url, options...)
		l.Conn = conn
		switch {
		case err == nil:
		case hint(err) != "":
			err = backoff.Permanent(fmt.Errorf("%w: %s", err, hint(err)))
		case time.Now().After(tell):
			tell = time.Now().Add(tellEvery)
			log.Warn("NATS server does not answer, retrying", "url", l.URL, "at most", connectFor, "error", redact.Error(err))
		}
		return struct{}{}, err
	}, backoff.WithMaxElapsedTime(connectFor), backoff.WithBackOff(retry.Delay()))
	if err != nil {
		return nil, fmt.Errorf("connect to the NATS server at %s: %w", l.URL, redact.Error(err))
	}
	return l, nil
}

// hint says what to do about an error of a connection that does not go away by itself; empty for any other.
func hint(err error) string {
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		return "check the user, password, token or credentials file"
	case errors.Is(err, nats.ErrSecureConnWanted):
		return "the server has no TLS: use nats:// in the place of tls://, and no CA, or configure TLS there"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "give the CA that has signed the server's certificate (--nats-ca), and a URL with a host name of the certificate"
	}
	if strings.Contains(err.Error(), "remote error: tls: ") && strings.Contains(err.Error(), "certificate") {
		return "the server wants a client certificate that its CA has signed (--nats-cert and --nats-key)"
	}
	return ""
}

// Refused returns an error if the server has refused a request of this connection for want of a permission.
func (l *Link) Refused() error {
	if l == nil {
		return nil
	}
	if text := l.denied.Load(); text != nil {
		return fmt.Errorf("the NATS server at %s: %s: %s", l.URL, *text, needed)
	}
	return nil
}

// CheckVersion returns an error if the server is older than 2.11. Before 2.10 a server ignores the metadata of streams, which says whose they are, and before 2.11
// replicas cannot be asked by name. What a server says that is not a version is let pass.
func CheckVersion(url, version string) error {
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil || major > 2 || major == 2 && minor >= 11 {
		return nil
	}
	return fmt.Errorf("the NATS server at %s is nats-server %s, and Levada needs 2.11 or later to keep buffers: upgrade the server", url, version)
}

// CheckJetStream returns an error if the server has no JetStream for this user, or takes no messages of minPayload bytes.
func (l *Link) CheckJetStream(ctx context.Context, log *slog.Logger, minPayload int64) error {
	if have := l.Conn.MaxPayload(); have < minPayload {
		return fmt.Errorf("the NATS server at %s takes messages of at most %d bytes, and Levada needs %d: raise max_payload in its configuration (its default is 1048576)", l.URL, have, minPayload)
	}
	js, err := jetstream.New(l.Conn)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	began := time.Now()
	_, err = Retry(ctx, l, log, "JetStream of the NATS server at "+l.URL, func(ctx context.Context) (struct{}, error) {
		_, err := js.AccountInfo(ctx)
		if disabled(err) && time.Since(began) < enabledFor {
			return struct{}{}, ErrNoLeader
		}
		return struct{}{}, err
	})
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return fmt.Errorf("the NATS server at %s has JetStream, but not for the account of this user: enable it for the account (jetstream: enabled)", l.URL)
	case disabled(err):
		return fmt.Errorf("the NATS server at %s has no JetStream: enable it in its configuration (jetstream { store_dir: ... }) or start it with -js", l.URL)
	}
	return err
}

func disabled(err error) bool {
	return errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount)
}

// Retry retries what failed because the server could not answer, until ctx ends: see retry.Until. link may be nil.
func Retry[T any](ctx context.Context, link *Link, log *slog.Logger, what string, open func(ctx context.Context) (T, error)) (T, error) {
	return retry.Until(ctx, log, what, func(err error) error { return link.Final(what, err) }, open)
}

// Final returns nil for an error that may go away, and the error to end with for any other. what was asked for. The link may be nil.
func (l *Link) Final(what string, err error) error {
	if !Transient(err) {
		return err
	}
	if refused := l.Refused(); refused != nil { // the server does not answer such a request, so it looks like a timeout
		return fmt.Errorf("%s: %w", what, refused)
	}
	return nil
}
