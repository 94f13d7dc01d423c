package manifest

import (
	"fmt"
	"strings"

	"github.com/levada-io/levada/api/v1alpha1"
)

func checkRedisService(r *report, s *v1alpha1.RedisBufferService, at path) {
	if s == nil {
		return
	}
	exactlyOne(r, at, CodeRedisService, "redis", []choice{{"external", s.External != nil}, {"native", s.Native != nil}})
	if n := s.Native; n != nil {
		if n.Version == "" {
			r.required(at.at("native.version"), "a version of Redis, 7.0 or later")
		}
		checkPersistence(r, n.Persistence, at.at("native.persistence"))
	}
	if c := s.External; c != nil {
		checkRedisConfig(r, c, at.at("external"))
	}
}

func checkRedisConfig(r *report, c *v1alpha1.RedisConfig, at path) {
	switch {
	case c.URL == "" && c.SentinelURL == "":
		r.missing(at.at("url"), Problem{Code: CodeRedisService, Message: "external names no server", Expected: "url, or sentinelUrl and masterName"})
	case c.URL == "" && c.MasterName == "":
		r.missing(at.at("masterName"), Problem{Code: CodeRedisService, Message: "sentinelUrl is there without masterName", Expected: "the name of the master as in SENTINEL MASTERS"})
	}
	checkRedisURL(r, c.URL, at.at("url"))
	checkRedisURL(r, c.SentinelURL, at.at("sentinelUrl"))
	if c.User != "" && c.Password == nil {
		r.missing(at.at("password"), Problem{Code: CodeRedisService, Message: "user is there without password", Expected: "a secret's name and key"})
	}
}

// checkRedisURL never repeats a URL, which may have a password in it.
func checkRedisURL(r *report, url string, at path) {
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok {
		scheme, rest = "redis", url
	}
	switch {
	case strings.Contains(rest, "@"):
		r.add(at, Problem{Code: CodeRedisService, Message: at.last() + " has a user or a password in it", Expected: "user, and password with a secret's name and key"})
	case scheme != "redis" && scheme != "rediss":
		r.add(at, Problem{Code: CodeRedisService, Message: fmt.Sprintf("%s has the scheme %s", at.last(), quote(scheme)), Expected: "HOST:PORT, redis://HOST:PORT or rediss://HOST:PORT"})
	}
}
