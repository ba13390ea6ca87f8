-- distance_m(point, point): the great-circle distance of two positions, in metres; NULL if either is NULL.
--
-- The haversine formula on a sphere of the mean Earth radius (IUGG, 6,371,008.8 m), which is within 0.6 % of the
-- ellipsoid. That is enough to choose drivers by, and needs no extension. least(1, …) keeps asin() defined where
-- rounding takes antipodes past 1.
CREATE OR REPLACE FUNCTION distance_m(a point, b point) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
    RETURN 2 * 6371008.8 * asin(least(1, sqrt(
        sin(radians(b[1] - a[1]) / 2) ^ 2
        + cos(radians(a[1])) * cos(radians(b[1])) * sin(radians(b[0] - a[0]) / 2) ^ 2)));
COMMENT ON FUNCTION distance_m(point, point) IS 'Great-circle distance of two (lng, lat) points in metres.';
