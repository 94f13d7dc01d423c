// Package redislink connects to Redis: one server, the servers of a Redis Cluster, or the master that Sentinels know. It waits for servers, says what is wrong
// with one that cannot be used, and what one does not promise.
package redislink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/levada-io/levada/internal/redact"
)

const (
	dialTimeout = 3 * time.Second
	// requestTimeout bounds one request. A server that syncs its file before each answer can take long on a slow disk.
	requestTimeout = 5 * time.Second
	tellAfter      = 3 * time.Second  // how long a wait may be before it is logged
	tellEvery      = 30 * time.Second // and how often after that
	// connectFor is how long a server may take to come up before that is an error.
	connectFor = 30 * time.Second
	// connections bounds those to one server. They are opened when they are needed: each cursor that waits for entries has one.
	connections = 1024
)

// Config says where Redis is.
type Config struct {
	Address Address
	// Credentials, if not nil, returns user and password for each new connection, so that they can be changed while a process runs.
	Credentials func() (user, password string, err error)
	// Recovered, if not nil, is called when requests succeed again after all had failed for some time.
	Recovered func()
	Logger    *slog.Logger
}

// Link is a connection to Redis that reconnects without end. Its methods may be called concurrently.
type Link struct {
	// Client takes commands. In a cluster it follows the keys to their servers, with Sentinels the master.
	Client redis.UniversalClient
	// URL names the servers in logs and errors, without credentials.
	URL string
	log *slog.Logger
	// recovered is Config.Recovered; nil for none.
	recovered func()

	work sync.WaitGroup // what Go started

	mu           sync.Mutex
	failingSince time.Time // since when every request fails; zero after one that succeeded
	told         time.Time // when that was logged last
}

// The client library logs each attempt to connect: the link says once what it waits for.
func init() { redis.SetLogger(silent{}) }

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// Dial connects, for at most 30 s, and for as long as ctx lives to a server that reads its data from disk. It finds out itself whether a server belongs to a cluster.
func Dial(ctx context.Context, cfg Config) (*Link, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Link{URL: cfg.Address.String(), log: cfg.Logger, recovered: cfg.Recovered}
	tell := time.Now().Add(tellAfter)
	attempts := func() (struct{}, error) {
		attempt, cancel := context.WithTimeout(ctx, 2*requestTimeout)
		defer cancel()
		client, err := open(attempt, cfg)
		switch err = redact.Error(Explain(err)); {
		case err == nil:
			l.Client = client
		case !Transient(err):
			err = backoff.Permanent(err)
		case time.Now().After(tell):
			tell = time.Now().Add(tellEvery)
			l.log.Warn("Redis server does not answer, retrying", "url", l.URL, "error", err)
		}
		return struct{}{}, err
	}
	_, err := backoff.Retry(ctx, attempts, backoff.WithMaxElapsedTime(connectFor), backoff.WithBackOff(retryDelay()))
	for err != nil && ctx.Err() == nil && strings.Contains(err.Error(), "LOADING ") { // it is there, and as much data as it has takes its time
		_, err = backoff.Retry(ctx, attempts, backoff.WithMaxElapsedTime(connectFor), backoff.WithBackOff(retryDelay()))
	}
	switch {
	case err == nil:
		return l, nil
	case cfg.Address.TLS != nil && errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil: // a server without TLS waits for the rest of a request
		err = fmt.Errorf("%w: no answer to the TLS handshake: if that port is one without TLS, begin the URL with redis://", err)
	case (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) && cfg.Address.TLS == nil:
		err = fmt.Errorf("%w: it closes each connection: if it takes TLS only, begin the URL with rediss://", err)
	}
	return nil, fmt.Errorf("connect to Redis at %s: %w", l.URL, err)
}

func retryDelay() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{InitialInterval: 50 * time.Millisecond, Multiplier: 1.5, MaxInterval: time.Second}
}

// String is the address without credentials.
func (a Address) String() string {
	scheme := "redis"
	if a.TLS != nil {
		scheme = "rediss"
	}
	if a.Master != "" {
		return scheme + "+sentinel://" + strings.Join(a.Hosts, ",") + "/" + a.Master
	}
	return scheme + "://" + strings.Join(a.Hosts, ",")
}

// open returns a client that has had an answer.
func open(ctx context.Context, cfg Config) (redis.UniversalClient, error) {
	a := cfg.Address
	if a.Master != "" {
		return answering(ctx, redis.NewFailoverClient(failoverOptions(cfg)))
	}
	var first error
	for i := range a.Hosts {
		client, err := openAt(ctx, cfg, a.Hosts[i])
		if err == nil || errors.Is(Explain(err), ErrDenied) || errors.Is(err, ErrUnfit) {
			return client, err
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// openAt asks one server what it is.
func openAt(ctx context.Context, cfg Config, host string) (redis.UniversalClient, error) {
	opt := options(cfg)
	opt.Addr = host
	single := redis.NewClient(opt)
	info, err := single.Info(ctx, "server").Result()
	mode := field(info, "redis_mode")
	switch {
	case err != nil:
	case mode == "cluster" && cfg.Address.DB != 0:
		err = fmt.Errorf("%w: a Redis Cluster has database 0 only: remove the number from the URL", ErrUnfit)
	case mode == "cluster":
		_ = single.Close()
		return answering(ctx, redis.NewClusterClient(clusterOptions(cfg)))
	case mode == "sentinel":
		err = fmt.Errorf("%w: %s is a Sentinel: give redis+sentinel://HOST/MASTER, with the name of the master as in SENTINEL MASTERS", ErrUnfit, host)
	case len(cfg.Address.Hosts) > 1:
		err = fmt.Errorf("%w: %s belongs to no Redis Cluster, and several addresses are given: give the one of the master, or the Sentinels as redis+sentinel://HOST/MASTER", ErrUnfit, host)
	default:
		return answering(ctx, single) // one that reads its data from disk answers INFO alone
	}
	_ = single.Close()
	return nil, err
}

// answering closes a client that has no answer.
func answering(ctx context.Context, client redis.UniversalClient) (redis.UniversalClient, error) {
	if err := client.Ping(ctx).Err(); err != nil {
		_ = client.Close()
		return nil, err
	}
	return client, nil
}

// Requests are not repeated by the client library: it would hide that a connection broke, after which a cursor has to look whether the server is what it was.
const noRetries = -1

func credentials(cfg Config) func(context.Context) (string, string, error) {
	if cfg.Credentials == nil {
		return nil
	}
	return func(context.Context) (string, string, error) { return cfg.Credentials() }
}

func options(cfg Config) *redis.Options {
	a := cfg.Address
	return &redis.Options{
		Username: a.Username, Password: a.Password, CredentialsProviderContext: credentials(cfg), DB: a.DB, TLSConfig: a.TLS, Protocol: 2, ClientName: "levada",
		DisableIdentity: true, MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		DialTimeout: dialTimeout, DialerRetries: 1, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout, ContextTimeoutEnabled: true,
		PoolSize: connections, MaxRetries: noRetries,
	}
}

func clusterOptions(cfg Config) *redis.ClusterOptions {
	a := cfg.Address
	return &redis.ClusterOptions{
		Addrs: a.Hosts, Username: a.Username, Password: a.Password, CredentialsProviderContext: credentials(cfg), TLSConfig: a.TLS, Protocol: 2, ClientName: "levada",
		DisableIdentity: true, MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		DialTimeout: dialTimeout, DialerRetries: 1, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout, ContextTimeoutEnabled: true,
		PoolSize: connections, ClusterStateReloadInterval: 10 * time.Second,
	}
}

func failoverOptions(cfg Config) *redis.FailoverOptions {
	a := cfg.Address
	return &redis.FailoverOptions{
		MasterName: a.Master, SentinelAddrs: a.Hosts, SentinelUsername: a.SentinelUsername, SentinelPassword: a.SentinelPassword,
		Username: a.Username, Password: a.Password, CredentialsProviderContext: credentials(cfg), DB: a.DB, TLSConfig: a.TLS, Protocol: 2, ClientName: "levada",
		DisableIdentity: true, DialTimeout: dialTimeout, DialerRetries: 1, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout, ContextTimeoutEnabled: true,
		PoolSize: connections, MaxRetries: noRetries,
	}
}

// Go runs do in a goroutine of the link. Close makes its requests fail, and waits for it.
func (l *Link) Go(do func()) { l.work.Go(do) }

// Close ends all connections, and waits for what runs on them.
func (l *Link) Close() error {
	err := l.Client.Close()
	l.work.Wait()
	return err
}

// Note takes what became of a request, and returns the error with what to do about it. When nothing has succeeded for some seconds, it is logged, once and then
// every 30 s; so is the end of that.
func (l *Link) Note(err error) error {
	if err == nil || errors.Is(err, redis.Nil) {
		l.succeeded()
		return err
	}
	err = redact.Error(Explain(err))
	if errors.Is(err, context.Canceled) || errors.Is(err, redis.ErrClosed) {
		return err
	}
	if cluster, ok := l.Client.(*redis.ClusterClient); ok {
		// The client library looks who serves which keys when a server sends it on, and not when one does not answer any more.
		cluster.ReloadState(context.Background())
	}
	l.failed(err)
	if Transient(err) {
		err = unavailable{err}
	}
	return err
}

func (l *Link) failed(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.failingSince.IsZero() {
		l.failingSince = now
	}
	if now.Sub(l.failingSince) > tellAfter && now.Sub(l.told) > tellEvery {
		l.told = now
		l.log.Warn("Redis does not answer, retrying", "url", l.URL, "error", err)
	}
}

// outage is for how long requests must have failed for Config.Recovered to be called.
const outage = time.Second

func (l *Link) succeeded() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failingSince.IsZero() {
		return
	}
	if l.recovered != nil && time.Since(l.failingSince) > outage {
		l.work.Go(l.recovered)
	}
	if !l.told.IsZero() {
		l.log.Info("Redis answers again", "url", l.URL, "after", time.Since(l.failingSince).Round(100*time.Millisecond))
	}
	l.failingSince, l.told = time.Time{}, time.Time{}
}

// Retry repeats what failed because the server could not answer, until ctx ends. what says what is waited for.
func Retry[T any](ctx context.Context, l *Link, what string, open func(ctx context.Context) (T, error)) (T, error) {
	tell := time.Now().Add(tellAfter)
	opened, err := backoff.Retry(ctx, func() (T, error) {
		attempt, cancel := context.WithTimeout(ctx, 2*requestTimeout)
		defer cancel()
		opened, err := open(attempt)
		switch {
		case err == nil:
		case !Transient(err):
			err = backoff.Permanent(err)
		case ctx.Err() == nil && time.Now().After(tell):
			tell = time.Now().Add(tellEvery)
			l.log.Warn("Redis does not answer, retrying", "waiting for", what, "error", err)
		}
		return opened, err
	}, backoff.WithMaxElapsedTime(0), backoff.WithBackOff(retryDelay()))
	if err != nil && ctx.Err() != nil {
		return opened, fmt.Errorf("waited for %s: %w", what, err)
	}
	return opened, err
}

// Pause waits a moment before another attempt. It returns false if ctx ends.
func Pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d + rand.N(d/4+1))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
