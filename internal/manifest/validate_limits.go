package manifest

import (
	"fmt"
	"strings"

	"github.com/levada-io/levada/api/v1alpha1"
)

func pipelineLimitsAreValid(r *report, p pipelineView) {
	if l := p.spec.Limits; l != nil {
		checkLimits(r, v1alpha1.VertexLimits{
			ReadBatchSize: l.ReadBatchSize, ReadTimeout: l.ReadTimeout, BufferMaxLength: l.BufferMaxLength,
			BufferUsageLimit: l.BufferUsageLimit, Concurrency: l.Concurrency, RateLimit: l.RateLimit,
		}, nil, p.at.at("limits"))
	}
}

// checkLimits looks at limits of any kind. inherited is the rate limit that fills up the keys of this one.
func checkLimits(r *report, l v1alpha1.VertexLimits, inherited *v1alpha1.RateLimit, at path) {
	atLeast(r, l.ReadBatchSize, 1, at.at("readBatchSize"), CodeLimits)
	atLeast(r, l.Concurrency, 1, at.at("concurrency"), CodeLimits)
	atLeast(r, l.BufferMaxLength, 1, at.at("bufferMaxLength"), CodeLimits)
	within(r, l.BufferUsageLimit, 1, 100, at.at("bufferUsageLimit"), CodeLimits)
	positive(r, l.ReadTimeout, at.at("readTimeout"))
	if l.RateLimit != nil {
		checkRateLimit(r, l.RateLimit, inherited, at.at("rateLimit"))
	}
}

func checkRateLimit(r *report, l, inherited *v1alpha1.RateLimit, at path) {
	merged := v1alpha1.MergeRateLimit(inherited, l)
	if merged.Max == nil {
		r.missing(at.at("max"), Problem{Code: CodeRateLimit, Message: "the rate limit has no max", Expected: "messages per second"})
	}
	atLeast(r, l.Max, 1, at.at("max"), CodeRateLimit)
	atLeast(r, l.Min, 1, at.at("min"), CodeRateLimit)
	low := uint64(v1alpha1.DefaultRateMin)
	if merged.Min != nil {
		low = *merged.Min
	}
	if merged.Max != nil && *merged.Max > 0 && low > *merged.Max {
		field := "min"
		if l.Min == nil {
			field = "max"
		}
		r.add(at.at(field), Problem{Code: CodeRateBounds, Message: fmt.Sprintf("min %d is more than max %d", low, *merged.Max), Expected: "min at most as large as max"})
	}
	positive(r, l.RampUpDuration, at.at("rampUpDuration"))
	positive(r, l.TTL, at.at("ttl"))
	checkRateModes(r, l.Modes, at.at("modes"))
	checkRateStore(r, l.Store, at.at("store"))
}

func checkRateModes(r *report, m *v1alpha1.RateLimiterModes, at path) {
	if m == nil {
		return
	}
	atMostOne(r, at, CodeRateModes, "modes", []choice{
		{"relaxed", m.Relaxed != nil}, {"scheduled", m.Scheduled != nil}, {"onlyIfUsed", m.OnlyIfUsed != nil}, {"goBackN", m.GoBackN != nil},
	})
	if m.OnlyIfUsed != nil {
		within(r, m.OnlyIfUsed.ThresholdPercentage, 0, 100, at.at("onlyIfUsed.thresholdPercentage"), CodeRateLimit)
	}
	if g := m.GoBackN; g != nil {
		within(r, g.ThresholdPercentage, 0, 100, at.at("goBackN.thresholdPercentage"), CodeRateLimit)
		within(r, g.RampDownPercentage, 0, 100, at.at("goBackN.rampDownPercentage"), CodeRateLimit)
		notNegative(r, g.CoolDownPeriod, at.at("goBackN.coolDownPeriod"))
	}
}

func checkRateStore(r *report, s *v1alpha1.RateLimiterStore, at path) {
	if s == nil {
		return
	}
	atMostOne(r, at, CodeRateStore, "store", []choice{{"redisStore", s.RedisStore != nil}, {"inMemoryStore", s.InMemoryStore != nil}})
	redis, at := s.RedisStore, at.at("redisStore")
	if redis == nil {
		return
	}
	enum(r, at.at("mode"), CodeEnum, redis.Mode, v1alpha1.RedisModeSingle, v1alpha1.RedisModeSentinel)
	atLeast(r, redis.DB, 0, at.at("db"), CodeNumber)
	if redis.Mode == v1alpha1.RedisModeSentinel {
		if redis.Sentinel == nil {
			r.missing(at.at("sentinel"), Problem{Code: CodeRateStore, Message: "mode sentinel needs sentinel", Expected: "masterName and endpoints"})
			return
		}
		if redis.Sentinel.MasterName == "" {
			r.required(at.at("sentinel.masterName"), "the name of the master")
		}
		if len(redis.Sentinel.Endpoints) == 0 {
			r.required(at.at("sentinel.endpoints"), "at least one HOST:PORT")
		}
		checkTLS(r, redis.Sentinel.SentinelTLS, at.at("sentinel.sentinelTLS"))
		checkTLS(r, redis.Sentinel.RedisTLS, at.at("sentinel.redisTLS"))
		return
	}
	switch {
	case redis.URL == "":
		r.required(at.at("url"), "redis://HOST:6379")
	case strings.Contains(redis.URL, "://") && !strings.HasPrefix(redis.URL, "redis://") && !strings.HasPrefix(redis.URL, "rediss://"):
		r.add(at.at("url"), Problem{Code: CodeAddress, Message: fmt.Sprintf("%s is not the address of a Redis server", quote(redis.URL)), Expected: "redis://HOST:6379 or rediss://HOST:6379"})
	}
}

func checkScale(r *report, s *v1alpha1.Scale, at path) {
	atLeast(r, s.Min, 0, at.at("min"), CodeScaleBounds)
	atLeast(r, s.Max, 0, at.at("max"), CodeScaleBounds)
	low, high := int32(0), int32(v1alpha1.DefaultScaleMax)
	if s.Min != nil {
		low = *s.Min
	}
	if s.Max != nil {
		high = *s.Max
	}
	if low > high {
		field, message := "max", fmt.Sprintf("max %d is less than min %d", high, low)
		if s.Max == nil {
			field, message = "min", fmt.Sprintf("min %d is more than %d, which is what max is when it is not given", low, high)
		}
		r.add(at.at(field), Problem{Code: CodeScaleBounds, Message: message, Expected: "max at least as large as min"})
	}
	within(r, s.LookbackSeconds, 1, 600, at.at("lookbackSeconds"), CodeScaleNumber)
	within(r, s.TargetBufferAvailability, 1, 100, at.at("targetBufferAvailability"), CodeScaleNumber)
	atLeast(r, s.TargetProcessingSeconds, 1, at.at("targetProcessingSeconds"), CodeScaleNumber)
	atLeast(r, s.ReplicasPerScaleUp, 1, at.at("replicasPerScaleUp"), CodeScaleNumber)
	atLeast(r, s.ReplicasPerScaleDown, 1, at.at("replicasPerScaleDown"), CodeScaleNumber)
	if s.ReplicasPerScale != nil {
		r.add(at.at("replicasPerScale"), Problem{Code: CodeDeprecated, Message: "replicasPerScale is the old spelling", Hint: "use replicasPerScaleUp and replicasPerScaleDown"})
	}
	if s.Cron != nil {
		checkCronScale(r, s, at)
	}
}
