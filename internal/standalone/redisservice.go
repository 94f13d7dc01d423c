package standalone

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/redislink"
	"github.com/levada-io/levada/internal/manifest"
)

// NamesBroker reports whether the manifests say where a broker is: the buffer service of a pipeline is an external Redis. Then none has to be given.
func NamesBroker(objects []manifest.Object) bool {
	for _, o := range objects {
		if p, ok := o.Manifest.(*v1alpha1.Pipeline); ok {
			if s, _ := bufferServiceOf(objects, p); s != nil && s.Spec.Redis != nil && s.Spec.Redis.External != nil {
				return true
			}
		}
	}
	return false
}

// brokerOfManifests is the Redis that the buffer services of the pipelines name; the zero value if they name none. A process has one broker: pipelines that ask for
// different ones are an error.
func (cfg Config) brokerOfManifests(secret func(name, key string) (string, error)) (at Broker, err error) {
	var external, other *v1alpha1.Pipeline
	var of *v1alpha1.InterStepBufferService
	for _, o := range cfg.Objects {
		p, ok := o.Manifest.(*v1alpha1.Pipeline)
		if !ok {
			continue
		}
		s, where := bufferServiceOf(cfg.Objects, p)
		switch {
		case s == nil || s.Spec.Redis == nil:
			other = p
		case s.Spec.Redis.External == nil:
			problem := where.ProblemAt("spec.redis.native", manifest.Problem{
				Code: manifest.CodeIgnoresNativeRedis, Severity: manifest.SeverityError,
				Message: fmt.Sprintf("native: Levada starts no Redis servers, and pipeline %s needs one: give the URL of one that exists with --redis, or external instead of native", p.Name),
			})
			return at, fmt.Errorf("%s", problem.String())
		case of != nil && of != s:
			return at, fmt.Errorf("pipelines %s and %s have the buffer services %s and %s, and a process has one: run them apart, or name one broker for both with --redis or --nats",
				external.Name, p.Name, of.Name, s.Name)
		default:
			external, of = p, s
		}
	}
	if of == nil {
		return at, nil
	}
	if other != nil {
		return at, fmt.Errorf("pipeline %s has the buffer service %s, which is Redis, and pipeline %s another one; a process has one: run them apart, or name one broker for both with --redis or --nats",
			external.Name, of.Name, other.Name)
	}
	at.Redis, err = redisOf(of.Spec.Redis.External, secret)
	if err != nil {
		err = fmt.Errorf("InterStepBufferService %s: %w", of.Name, err)
	}
	return at, err
}

// redisOf is how to connect to a Redis of a manifest.
func redisOf(c *v1alpha1.RedisConfig, secret func(name, key string) (string, error)) (cfg *redislink.Config, err error) {
	url := c.URL
	if !strings.Contains(url, "://") {
		url = "redis://" + url
	}
	if c.URL == "" {
		scheme, hosts, ok := strings.Cut(c.SentinelURL, "://")
		if !ok {
			scheme, hosts = "redis", c.SentinelURL
		}
		url = scheme + "+sentinel://" + strings.TrimSuffix(hosts, "/") + "/" + c.MasterName
	}
	cfg = &redislink.Config{}
	if cfg.Address, err = redislink.ParseAddress(url); err != nil {
		return nil, err
	}
	get := func(s *corev1.SecretKeySelector) (string, error) {
		if s == nil {
			return "", nil
		}
		return secret(s.Name, s.Key)
	}
	if c.URL == "" {
		if cfg.Address.SentinelPassword, err = get(c.SentinelPassword); err != nil {
			return nil, err
		}
	}
	if c.Password == nil {
		return cfg, nil
	}
	if _, err := get(c.Password); err != nil {
		return nil, err
	}
	// A secret in a file is read again for each connection, so that the password can be changed while a process runs.
	cfg.Credentials = func() (string, string, error) {
		password, err := get(c.Password)
		return c.User, password, err
	}
	return cfg, nil
}
