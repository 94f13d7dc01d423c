package redislink

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Errors that callers match with errors.Is. None of them is final: what they name can be put right while a process waits.
var (
	// ErrFull means that the server takes no more: its memory limit is reached, or its disk is full.
	ErrFull = errors.New("the Redis server takes no more")
	// ErrDenied means that the server does not know this user, or does not let it do what is needed.
	ErrDenied = errors.New("the Redis server denies this")
	// ErrUnfit means that the server cannot keep buffers as it is.
	ErrUnfit = errors.New("the Redis server cannot be used")
	// ErrMasterOnly means that the server is a replica, or is becoming one.
	ErrMasterOnly = errors.New("the Redis server is a replica")
)

// explanations are what answers of a server mean, by the word that they begin with.
var explanations = []struct {
	prefix string
	is     error
	advice string
}{
	{"OOM ", ErrFull, "its maxmemory is reached: it goes on when readers have caught up; otherwise raise maxmemory, or lower bufferMaxLength"},
	{"MISCONF ", ErrFull, "it cannot write to its disk, which is full or failing: free disk space on its machine, after which it goes on by itself"},
	{"NOREPLICAS ", nil, "fewer replicas follow it than min-replicas-to-write: start them, or lower that setting"},
	{"NOAUTH", ErrDenied, "it asks for a password: give --redis-password-file, or the URL with user and password in the environment (LEVADA_REDIS)"},
	{"WRONGPASS", ErrDenied, "user or password are wrong: check those of the URL, and ACL LIST at the server"},
	{"NOPERM", ErrDenied, "grant it with ACL SETUSER, or all that Levada needs: ACL SETUSER USER ~levada:* +@all -@dangerous +info +config|get"},
	{"READONLY ", ErrMasterOnly, "give the address of the master, or the Sentinels (redis+sentinel://HOST/MASTER) so that the master is found"},
	{"LOADING", nil, "it reads its data from disk, and answers when that is done"},
	{"MASTERDOWN", nil, "its master is unreachable"},
	{"CLUSTERDOWN", nil, "a part of the cluster has no master: start its servers"},
	{"BUSY ", nil, "it runs a script of another program for long: SCRIPT KILL at the server ends it"},
	{"ERR max number of clients", nil, "it has as many connections as its maxclients allows: raise maxclients, or close other connections"},
	{"UNBLOCKED", nil, "it became a replica"},
	{"redis: invalid reply", ErrUnfit, "what answers there is no Redis server, or takes TLS only: check host and port, or begin the URL with rediss://"},
	{"redis: can't parse", ErrUnfit, "what answers there is no Redis server, or takes TLS only: check host and port, or begin the URL with rediss://"},
	{"tls: first record does not look like a TLS handshake", ErrUnfit, "that port is one without TLS: begin the URL with redis://, or give the port for TLS"},
	{"tls: failed to verify certificate", ErrUnfit, "give the CA that issued the server's certificate (--redis-ca), and the host as it stands in the certificate"},
	{"remote error: tls: certificate required", ErrDenied, "it asks for a client certificate: give --redis-cert and --redis-key"},
	{"ERR unknown command", ErrUnfit, "Levada needs Redis 7.0 or later, or a server that is compatible with it"},
	{"ERR SELECT is not allowed in cluster mode", ErrUnfit, "a Redis Cluster has database 0 only: remove the number from the URL"},
	{"ERR DB index is out of range", ErrUnfit, "the database of the URL does not exist: give a smaller number, or raise databases in its configuration"},
}

// Explain returns an error of a server with what it means and what to do about it.
func Explain(err error) error {
	if err == nil || errors.Is(err, redis.Nil) {
		return err
	}
	text := err.Error()
	for _, e := range explanations {
		if !strings.HasPrefix(text, e.prefix) && !strings.Contains(text, ": "+e.prefix) {
			continue
		}
		if e.is == nil {
			return fmt.Errorf("%w: %s", err, e.advice)
		}
		return fmt.Errorf("%w: %w: %s", e.is, err, e.advice)
	}
	return err
}

// unavailable is an error of a request that may go away by itself.
type unavailable struct{ error }

func (u unavailable) Unwrap() error { return u.error }

// Unavailable reports whether an error is one that Note returned, and may go away by itself. Unlike Transient it may be asked about errors that are not of Redis.
func Unavailable(err error) bool {
	_, is := errors.AsType[unavailable](err)
	return is
}

// Transient reports whether an error may go away by itself: of the network, of a server that starts, fails over or is busy, or that is full.
func Transient(err error) bool {
	switch {
	case err == nil, errors.Is(err, ErrDenied), errors.Is(err, ErrUnfit), errors.Is(err, redis.ErrClosed):
		return false
	case errors.Is(err, ErrFull), errors.Is(err, ErrMasterOnly):
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	if _, server := errors.AsType[redis.Error](err); !server {
		return true // of a connection
	}
	for _, e := range explanations {
		if e.is == nil && strings.Contains(err.Error(), e.prefix) {
			return true
		}
	}
	return strings.Contains(err.Error(), "TRYAGAIN") || strings.Contains(err.Error(), "MOVED") || strings.Contains(err.Error(), "ASK ")
}
